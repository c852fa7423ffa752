"""Pages that the site generator makes from the library itself, so that they cannot go stale."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add the reference page of parts, made from the registry."""
    files.append(File.generated(config, "parts.md", content=parts_page()))
    return files


def parts_page() -> str:
    """Every registered part: what it is, what it can do, its fields."""
    import variform as vf
    from variform.core.schema import part_info

    lines = [
        "# Parts",
        "",
        "Every registered part, by kind. A field marked *inherited* takes its value from the surroundings when it is",
        "left out. The same from the command line: `variform parts`, `variform parts --kind mixer --json`.",
    ]
    kind = ""
    for (of_kind, _), part in vf.parts().items():
        if of_kind != kind:
            kind = of_kind
            lines += ["", f"## {kind}"]
        lines += _part(part_info(part), asdict(part.can) if kind in ("attention", "mixer") else {})
    return "\n".join(lines) + "\n"


def _part(info: dict[str, Any], can: dict[str, bool]) -> list[str]:
    lines = ["", f"### {info['name']} {{#{info['kind']}-{info['name']}}}", "", _escape(info["summary"])]
    if can:
        lines += ["", "Can: " + ", ".join(name.replace("_", " ") for name, able in can.items() if able) + "."]
    if info["fields"]:
        lines += ["", "| field | type | default | what it is |", "|---|---|---|---|"]
    for field in info["fields"]:
        default = "required" if field["required"] else f"`{field['default']}`"
        default = "*inherited*" if default == "`INHERIT`" else default
        lines.append(f"| `{field['name']}` | {_escape(field['type'])} | {_escape(default)} | {_escape(field['doc'])} |")
    return lines


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") if "`" not in text else text
