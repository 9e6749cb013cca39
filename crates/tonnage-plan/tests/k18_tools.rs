//! The tools' own parsers take the written files. They run where `TONNAGE_TEST_PYTHON` names a Python that has them, and say so where not.
//! What they accepted is recorded (`accepted/`, rewritten by TONNAGE_BLESS=1 after an acceptance), and what is written today is held against
//! it in every run; so are the keys and kinds of any job's files against the recorded lists of the tools' fields.

use std::process::Command;
use tonnage_core::Job;
use tonnage_plan::export::{Options, export, find};

/// A `Trainer` job with adapters; `more` on top.
fn job(more: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in [
        ("model.id", "meta-llama/Llama-3.2-1B"),
        ("train.seq_len", "512"),
        ("train.micro_batch_size", "2"),
        ("train.activation_checkpointing", "full"),
        ("train.optimizer", "adamw_fused"),
        ("train.clip_grad_norm", "0.5"),
        ("stack.transformers", "5.17.0"),
    ]
    .iter()
    .chain(more)
    {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

const LORA: &[(&str, &str)] = &[
    ("lora.r", "8"),
    ("lora.alpha", "16"),
    ("lora.targets", "q_proj,v_proj"),
    ("lora.dropout", "0.05"),
];

/// Compares the job's file with the recorded one that the tool accepted.
fn recorded(format: &str, job: &Job, accepted: bool) {
    let e = export(job, find(format).unwrap(), &Options::default())
        .unwrap_or_else(|bad| panic!("{format}: {bad:#?}"));
    let path = format!(
        "{}/tests/accepted/{}",
        env!("CARGO_MANIFEST_DIR"),
        e.files[0].name
    );
    if accepted && std::env::var_os("TONNAGE_BLESS").is_some() {
        std::fs::write(&path, &e.files[0].text).unwrap();
    }
    let old = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(
        e.files[0].text, old,
        "{path} is what the tool accepted; with the tool in TONNAGE_TEST_PYTHON, TONNAGE_BLESS=1 records it anew"
    );
}

/// Runs `script` on the job's file in Python; `None`: there is no such Python or module. Either way the file is the one that is recorded.
fn parsed(module: &str, format: &str, job: &Job, script: &str) -> Option<serde_json::Value> {
    let answer = asked(module, format, job, script);
    recorded(format, job, answer.is_some());
    answer
}

fn asked(module: &str, format: &str, job: &Job, script: &str) -> Option<serde_json::Value> {
    let Some(python) = std::env::var_os("TONNAGE_TEST_PYTHON") else {
        eprintln!(
            "skipped: {format} is not parsed by {module} itself: TONNAGE_TEST_PYTHON is not set"
        );
        return None;
    };
    let there = Command::new(&python)
        .args([
            "-c",
            &format!(
                "import importlib.util as u, sys; sys.exit(0 if u.find_spec('{module}') else 9)"
            ),
        ])
        .status()
        .expect("python starts");
    if !there.success() {
        eprintln!("skipped: {format} is not parsed by {module} itself: it is not installed");
        return None;
    }
    let e = export(job, find(format).unwrap(), &Options::default())
        .unwrap_or_else(|bad| panic!("{format}: {bad:#?}"));
    let folder = std::env::temp_dir().join(format!("tonnage-{}-{format}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(&e.files[0].name);
    std::fs::write(&path, &e.files[0].text).unwrap();
    let out = Command::new(&python)
        .arg("-c")
        .arg(script)
        .arg(&path)
        .env("HF_HUB_OFFLINE", "1")
        // LLaMA-Factory refuses versions of its own dependencies that it does not know; its parser is the same
        .env("DISABLE_VERSION_CHECK", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .current_dir(&folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().last().unwrap_or_default().to_string();
    let _ = std::fs::remove_dir_all(&folder);
    assert!(
        out.status.success(),
        "{module} refuses the file:\n{}\n{}",
        e.files[0].text,
        String::from_utf8_lossy(&out.stderr)
    );
    Some(serde_json::from_str(&last).unwrap_or_else(|e| panic!("{e}: {text}")))
}

#[test]
fn accelerate_reads_its_configuration() {
    let script = "
import json, sys
from accelerate.commands.config.config_args import load_config_from_file
c = load_config_from_file(sys.argv[1])
print(json.dumps([c.mixed_precision, c.distributed_type.value, c.num_processes]))";
    let j = job(&[("train.precision", "bf16-mixed")]);
    if let Some(v) = parsed("accelerate", "accelerate", &j, script) {
        assert_eq!(v, serde_json::json!(["bf16", "NO", 1]));
    }
}

#[test]
fn transformers_parser_takes_the_arguments() {
    // the two dataclasses of run_clm.py with the fields that are written; a machine without a card refuses `bf16` when the arguments are
    // made, which is not what is asked here
    let script = "
import dataclasses, json, sys
from typing import Optional
from transformers import HfArgumentParser, TrainingArguments
TrainingArguments.__post_init__ = lambda self: None
@dataclasses.dataclass
class Model:
    model_name_or_path: Optional[str] = None
    model_revision: str = 'main'
    dtype: Optional[str] = None
@dataclasses.dataclass
class Data:
    block_size: Optional[int] = None
m, d, t = HfArgumentParser((Model, Data, TrainingArguments)).parse_yaml_file(sys.argv[1])
print(json.dumps([m.model_name_or_path, m.dtype, d.block_size, t.per_device_train_batch_size, t.optim, t.bf16, t.gradient_checkpointing, t.max_grad_norm, t.liger_kernel_config['fused_linear_cross_entropy']]))";
    let j = job(&[("train.precision", "bf16-mixed"), ("train.loss", "fused")]);
    if let Some(v) = parsed("transformers", "hf", &j, script) {
        let wanted = serde_json::json!([
            "meta-llama/Llama-3.2-1B",
            "float32",
            512,
            2,
            "adamw_torch_fused",
            true,
            true,
            0.5,
            true
        ]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn trl_parser_takes_the_configuration() {
    let script = "
import json, sys
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
SFTConfig.__post_init__ = lambda self: None
s, t, m = TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config(args=['--config', sys.argv[1], '--dataset_name', 'D'], fail_with_unknown_args=True)
print(json.dumps([m.model_name_or_path, m.dtype, m.lora_r, m.lora_target_modules, m.load_in_4bit, m.use_bnb_nested_quant, t.max_length, t.bf16]))";
    let mut more = LORA.to_vec();
    more.extend([
        ("quant.format", "nf4"),
        ("train.precision", "bf16-mixed"),
        ("model.dtype", "bf16"),
    ]);
    if let Some(v) = parsed("trl", "trl", &job(&more), script) {
        let wanted = serde_json::json!([
            "meta-llama/Llama-3.2-1B",
            "bfloat16",
            8,
            ["q_proj", "v_proj"],
            true,
            true,
            512,
            true
        ]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn axolotl_schema_takes_the_configuration() {
    let script = "
import json, sys, yaml
from axolotl.utils.schemas.config import AxolotlInputConfig
c = AxolotlInputConfig(**yaml.safe_load(open(sys.argv[1])))
print(json.dumps([c.base_model, c.sequence_len, c.adapter, c.lora_r, c.load_in_4bit, c.bf16, c.gradient_checkpointing]))";
    let mut more = LORA.to_vec();
    more.extend([("quant.format", "nf4"), ("train.precision", "bf16-mixed")]);
    if let Some(v) = parsed("axolotl", "axolotl", &job(&more), script) {
        let wanted =
            serde_json::json!(["meta-llama/Llama-3.2-1B", 512, "qlora", 8, true, true, true]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn llamafactory_parser_takes_the_configuration() {
    let script = "
import json, sys, yaml
from transformers import HfArgumentParser
from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments, TrainingArguments
TrainingArguments.__post_init__ = lambda self: None
m, d, t, f, g = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)).parse_yaml_file(sys.argv[1])
print(json.dumps([m.model_name_or_path, d.cutoff_len, f.finetuning_type, f.lora_rank, f.lora_target, m.disable_gradient_checkpointing, m.use_reentrant_gc, t.bf16]))";
    let mut more = LORA.to_vec();
    more.push(("train.precision", "bf16-mixed"));
    if let Some(v) = parsed("llamafactory", "llamafactory", &job(&more), script) {
        let wanted = serde_json::json!([
            "meta-llama/Llama-3.2-1B",
            512,
            "lora",
            8,
            ["q_proj", "v_proj"],
            false,
            false,
            true
        ]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn torchtitan_manager_takes_the_configuration() {
    let script = "
import json, sys
from torchtitan.config import ConfigManager
c = ConfigManager().parse_args(['--job.config_file', sys.argv[1]])
print(json.dumps([c.model.flavor, c.training.local_batch_size, c.training.global_batch_size, c.training.seq_len, c.training.dtype, c.training.mixed_precision_param, c.optimizer.implementation, c.activation_checkpoint.mode, c.compile.enable]))";
    let j = job(&[
        ("model.id", "meta-llama/Llama-3.1-8B"),
        ("train.gradient_accumulation_steps", "4"),
        ("train.precision", "bf16-mixed"),
    ]);
    if let Some(v) = parsed("torchtitan", "torchtitan", &j, script) {
        let wanted = serde_json::json!([
            "8B", 2, 8, 512, "float32", "bfloat16", "fused", "full", false
        ]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn torchtune_makes_the_components_of_the_configuration() {
    // the model is made without storage; the tokenizer needs its file, so its call is only bound
    let script = "
import inspect, json, sys, torch
from omegaconf import OmegaConf
from torchtune import config
from torchtune.config._utils import _get_component_from_path
c = OmegaConf.load(sys.argv[1])
with torch.device('meta'):
    m = config.instantiate(c.model)
    o = config.instantiate(c.optimizer, list(m.parameters()))
l = config.instantiate(c.loss)
inspect.signature(_get_component_from_path(c.checkpointer._component_)).bind_partial(**{k: v for k, v in c.checkpointer.items() if k != '_component_'})
lora = sorted({n.split('.')[-3] for n, _ in m.named_parameters() if '.lora_a.' in n})
print(json.dumps([type(m).__name__, lora, type(o).__name__, o.defaults['fused'], type(l).__name__, l.num_output_chunks, c.batch_size, c.tokenizer.max_seq_len, c.dtype, c.enable_activation_checkpointing]))";
    let mut more = LORA.to_vec();
    more.push(("train.precision", "bf16"));
    if let Some(v) = parsed("torchtune", "torchtune", &job(&more), script) {
        let wanted = serde_json::json!([
            "TransformerDecoder",
            ["q_proj", "v_proj"],
            "AdamW",
            true,
            "CEWithChunkedOutputLoss",
            8,
            2,
            512,
            "bf16",
            true
        ]);
        assert_eq!(v, wanted);
    }
}

#[test]
fn deepspeed_reads_its_configuration() {
    let script = "
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
c = DeepSpeedConfig(sys.argv[1])
print(json.dumps([c.train_micro_batch_size_per_gpu, c.gradient_accumulation_steps, c.train_batch_size, c.gradient_clipping, int(c.zero_optimization_stage)]))";
    let j = job(&[
        ("train.precision", "fp32"),
        ("train.gradient_accumulation_steps", "4"),
    ]);
    if let Some(v) = parsed("deepspeed", "deepspeed", &j, script) {
        assert_eq!(v, serde_json::json!([2, 4, 8, 0.5, 0]));
    }
}
