"""Pages that the site generator makes from the library itself, so that they cannot go stale."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add the reference page of parts, made from the registry, and the pictures of the page on diagrams."""
    files.append(File.generated(config, "parts.md", content=parts_page()))
    for name, picture in pictures().items():
        files.append(File.generated(config, f"pictures/{name}.svg", content=picture))
    return files


def pictures() -> dict[str, str]:
    """Diagrams of a language model, of an encoder-decoder, and of a program, by name."""
    import variform as vf
    from variform.dialects.configaformers import program_spec
    from variform.dialects.configaformers.prebuilt_blocks import normformer_block

    sizes = {"vocab_size": 32000, "dim": 512, "depth": 8, "heads": 8, "max_seq_len": 1024}
    program = program_spec(
        {"blocks": [{"config": normformer_block(num_heads=8, dim=512), "repeat": 6}]},
        {"x": ["B", "L", 512], "attn_offset": ["B", 8, "L", "L"]},
    )
    return {
        "llama": vf.diagram(vf.models.llama(kv_heads=2, **sizes)).svg(),
        "seq2seq": vf.diagram(vf.models.seq2seq(**sizes)).svg(),
        "normformer": vf.diagram(program).svg(),
    }


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
