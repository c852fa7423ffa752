"""A model put together by Hydra: run it, or choose other stacks on the command line.

python my_model.py
python my_model.py 'stack@xformer.stack_configs=[encoder_local]'
python my_model.py --multirun 'stack@xformer.stack_configs=[encoder_local], [encoder_random]'
"""

import hydra
from omegaconf import DictConfig

from variform.dialects.xformers.factory.hydra_helper import import_xformer_config_schema


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def my_app(cfg: DictConfig) -> None:
    model = hydra.utils.instantiate(cfg.xformer, _convert_="all")
    stacks = cfg.xformer.stack_configs
    print(f"Built a model with {len(stacks)} stack{'s' if len(stacks) != 1 else ''}: {stacks.keys()}")
    print(model)


if __name__ == "__main__":
    import_xformer_config_schema()
    my_app()
