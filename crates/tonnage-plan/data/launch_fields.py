"""Records the fields that trainers' own parsers take, with the kinds of values: launch-fields.json, by which a
file's unknown keys are told from those that do not concern memory.

    python launch_fields.py

Kinds: bool, int, float, str, list, dict, null, any; "=word" is one of a fixed set of words. Run it where the tools are installed
(DISABLE_VERSION_CHECK=1 for LLaMA-Factory beside newer transformers).
"""

import dataclasses, enum, importlib.metadata as meta, inspect, json, pathlib, sys, types, typing


def kinds(t):
    """The kinds of one annotation."""
    origin = typing.get_origin(t)
    if t is inspect.Parameter.empty or t is typing.Any or isinstance(t, (str, typing.TypeVar)):
        return {"any"}
    if origin is typing.Annotated:
        return kinds(typing.get_args(t)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(kinds(a) for a in typing.get_args(t)))
    if origin is typing.Literal:
        words = typing.get_args(t)
        return {f"={w}" for w in words if isinstance(w, str)} | set().union(*(kinds(type(w)) for w in words if not isinstance(w, str)), set())
    if t is type(None):
        return {"null"}
    t = origin or t
    if not isinstance(t, type):
        return {"any"}
    if issubclass(t, enum.Enum):
        return {f"={m.value}" for m in t} if all(isinstance(m.value, str) for m in t) else {"any"}
    for kind, types_ in (("bool", (bool,)), ("int", (int,)), ("float", (float,)), ("str", (str,)), ("list", (list, tuple, set))):
        if issubclass(t, types_):
            return {kind}
    if issubclass(t, dict) or dataclasses.is_dataclass(t) or hasattr(t, "model_fields"):
        return {"dict"}
    return {"any"}


def of(*classes, prefix=""):
    """The fields of dataclasses."""
    out = {}
    for c in classes:
        hints = typing.get_type_hints(c)
        for f in dataclasses.fields(c):
            if f.init:
                out[prefix + f.name] = sorted(kinds(hints[f.name]))
    return out


def signature(f, prefix):
    return {prefix + n: sorted(kinds(p.annotation)) for n, p in inspect.signature(f).parameters.items()}


def transformers():
    from transformers import TrainingArguments

    # run_clm.py is a script, not of the package: its two dataclasses have these
    script = {"model_name_or_path": ["str"], "model_revision": ["str"], "dtype": ["=auto", "=bfloat16", "=float16", "=float32"], "block_size": ["int"]}
    return of(TrainingArguments) | script


def trl():
    from trl import ModelConfig, ScriptArguments, SFTConfig

    return of(ScriptArguments, SFTConfig, ModelConfig)


def llamafactory():
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments

    return of(ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)


def axolotl():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    import importlib, axolotl.integrations, pydantic

    # the plugins' keys are of the same file; their modules import what only a run needs
    for absent in ("wandb", "llmcompressor"):
        sys.modules.setdefault(absent, types.ModuleType(absent))
    classes = [AxolotlInputConfig]
    for p in sorted(pathlib.Path(axolotl.integrations.__path__[0]).glob("*/args.py")):
        try:
            module = importlib.import_module(f"axolotl.integrations.{p.parent.name}.args")
        except Exception as e:
            print(f"axolotl.integrations.{p.parent.name}: {e}", file=sys.stderr)
            continue
        classes += [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, pydantic.BaseModel) and c.__module__ == module.__name__]
    out = {}
    for c in classes:
        for name, f in c.model_fields.items():
            for n in {name, f.alias or name}:
                out.setdefault(n, sorted(kinds(f.annotation)))
    return out


def accelerate():
    from accelerate.commands.config.config_args import ClusterConfig

    return of(ClusterConfig)


def torchtitan():
    from torchtitan.config.job_config import JobConfig

    out = of(JobConfig)
    hints = typing.get_type_hints(JobConfig)
    for f in dataclasses.fields(JobConfig):
        if dataclasses.is_dataclass(hints[f.name]):
            out |= of(hints[f.name], prefix=f.name + ".")
    return out


def deepspeed():
    import deepspeed.runtime.constants as c
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config

    # get_scalar_param reads these names; the kinds are those of their defaults
    out = {c.TRAIN_MICRO_BATCH_SIZE_PER_GPU: ["int"], c.GRADIENT_ACCUMULATION_STEPS: ["int"], c.GRADIENT_CLIPPING: ["float"]}
    for name, model in (("zero_optimization", DeepSpeedZeroConfig), ("bf16", DeepSpeedBF16Config), ("fp16", DeepSpeedFP16Config)):
        out[name] = ["dict"]
        out |= {f"{name}.{k}": sorted(kinds(f.annotation)) for k, f in model.model_fields.items()}
    return out


def torchtune():
    import importlib, pkgutil
    import torchtune.models as models

    # every builder that a file may name, and what the recipes' own files say
    builders = []
    for m in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"torchtune.models.{m.name}")
        for n in getattr(module, "__all__", []):
            if callable(getattr(module, n)) and not inspect.isclass(getattr(module, n)):
                builders.append(f"torchtune.models.{m.name}.{n}")
    from torchtune.models.llama3 import llama3_tokenizer
    from torchtune.models.llama3_2 import lora_llama3_2_1b
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.training import FullModelHFCheckpointer

    out = {"model": ["dict"], "tokenizer": ["dict"], "checkpointer": ["dict"], "optimizer": ["dict"], "loss": ["dict"]}
    out |= signature(lora_llama3_2_1b, "model.") | signature(llama3_tokenizer, "tokenizer.") | signature(FullModelHFCheckpointer.__init__, "checkpointer.")
    out |= signature(CEWithChunkedOutputLoss.__init__, "loss.") | {"optimizer.lr": ["float"], "optimizer.fused": ["bool"]}
    # qlora builders pass their keywords on
    out["model.use_dora"] = ["bool"]
    out |= {f"{t}._component_": ["str"] for t in ("tokenizer", "checkpointer", "optimizer", "loss")}
    out["model._component_"] = ["=" + b for b in sorted(builders)]
    return torchtune_recipes() | out


def torchtune_recipes():
    """The keys of the single-device recipes' own files."""
    import torchtune, yaml

    root = pathlib.Path(torchtune.__file__).parent.parent / "recipes" / "configs"
    keys = {}
    for p in sorted(root.glob("*/*_single_device.yaml")):
        for k, v in yaml.safe_load(p.read_text()).items():
            keys.setdefault(k, set()).add({"bool": "bool", "int": "int", "float": "float", "str": "str", "list": "list", "dict": "dict", "NoneType": "null"}[type(v).__name__])
    return {k: sorted(v) for k, v in keys.items()}


def main():
    out = {}
    for name, package, f in (
        ("hf", "transformers", transformers),
        ("trl", "trl", trl),
        ("llamafactory", "llamafactory", llamafactory),
        ("axolotl", "axolotl", axolotl),
        ("accelerate", "accelerate", accelerate),
        ("torchtitan", "torchtitan", torchtitan),
        ("deepspeed", "deepspeed", deepspeed),
        ("torchtune", "torchtune", torchtune),
    ):
        try:
            fields = f()
        except ImportError as e:
            sys.exit(f"{package}: {e}")
        out[name] = {"tool": f"{package} {meta.version(package)}", "fields": dict(sorted(fields.items()))}
    lines = []
    for name, d in out.items():
        fields = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in d["fields"].items())
        lines.append(f'  {json.dumps(name)}: {{"tool": {json.dumps(d["tool"])}, "fields": {{\n{fields}\n  }}}}')
    # imports print what they like: not to standard output
    pathlib.Path(__file__).with_name("launch-fields.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
