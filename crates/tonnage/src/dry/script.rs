//! The Python program that performs a job of ours: readable, complete, in the words of the recorded runs' `config`.

use serde_json::{Map, Value, json};
use tonnage_core::spec::{CacheChoice, Hold, Loading, Loop, Mask, Precision, Spec, Work};
use tonnage_model::adapt::{Quant, Targets};
use tonnage_model::arch::Head;
use tonnage_model::{Attention, Loss};
use tonnage_sim::checkpoint::Recompute;
use tonnage_units::ScalarType;

/// Families of hand-written models: there is nothing in transformers to run.
const BY_HAND: [&str; 6] = [
    "nanogpt",
    "pose",
    "spoter",
    "gpt_per_head",
    "resnet",
    "timm",
];

/// A job in the records' words.
///
/// # Errors
/// What they have no word for.
pub fn config(s: &Spec, gpu: &str) -> Result<Value, String> {
    let mut c = Map::new();
    let mut set = |k: &str, v: Value| {
        c.insert(k.into(), v);
    };
    if s.description.is_some() {
        return Err(
            "a described model has no code to run; measure its own script with `tonnage dry-run`"
                .into(),
        );
    }
    if s.weights.is_some() {
        return Err("weights in another type than the precision's (`model.dtype`)".into());
    }
    if s.loss != Loss::Library {
        return Err("a loss other than the library's (`train.loss`)".into());
    }
    if s.freeze.is_some() {
        return Err("frozen layers (`train.freeze_layers`)".into());
    }
    if s.zero_grad_late {
        return Err("zero_grad between forward and backward (`train.zero_grad = late`)".into());
    }
    let mut model = json!({"name": s.model_type, "family": s.model_type, "args": s.config});
    match s.head {
        Head::MaskedLm => model["head"] = json!("mlm"),
        Head::Default | Head::CausalLm => {}
        Head::SequenceClassification
            if ["bert", "roberta", "distilbert"].contains(&s.model_type.as_str()) => {}
        Head::SequenceClassification | Head::Base | Head::Embedding => {
            return Err("this task head (`model.head`)".into());
        }
    }
    set(
        "kind",
        json!(match s.work {
            Work::Train => "train",
            Work::Forward => "forward",
            Work::Generate(_) => "generate",
        }),
    );
    set("model", model);
    set("gpu", json!(gpu));
    set(
        "precision",
        json!(match s.precision {
            Precision::Fp32 => "fp32",
            Precision::Pure(ScalarType::BF16) => "bf16",
            Precision::Pure(_) => "fp16",
            Precision::Mixed(ScalarType::BF16) => "amp_bf16",
            Precision::Mixed(_) => "amp_fp16",
        }),
    );
    set("batch", json!(s.batch));
    set("seq", json!(s.seq));
    if let Some(t) = s.target_len {
        set("tgt", json!(t));
    }
    if s.work == Work::Train {
        set("optim", json!(s.optimizer));
        set("steps", json!(s.steps));
        if s.accumulation > 1 {
            set("accum", json!(s.accumulation));
        }
        match s.clip {
            Some(v) => set("clip", json!(v)),
            None if s.driver == Loop::Trainer => set("clip", json!(0.0)),
            None => {}
        }
        if !s.set_to_none {
            set("set_to_none", json!(false));
        }
        if s.driver == Loop::Trainer {
            set("loop", json!("trainer"));
        }
        if s.hold == Hold::Outputs {
            set("hold", json!("outputs"));
        }
    }
    if let Some(k) = &s.checkpoint {
        if k.every != 1 || k.how != Recompute::NonReentrant {
            return Err("checkpointing that is reentrant, selective or of every nth layer".into());
        }
        set("ckpt", json!(true));
    }
    if let Some(l) = &s.lora {
        if l.dora || l.layers.is_some() || !l.exclude.is_empty() {
            return Err("adapters with DoRA, chosen layers or exclusions".into());
        }
        let targets = match &l.targets {
            Targets::Names(n) => json!(n),
            Targets::Pattern(p) => json!(p),
            Targets::AllLinear => json!("all-linear"),
        };
        set(
            "peft",
            json!({"r": l.r, "targets": targets, "dropout": l.dropout, "fp32_adapters": l.fp32_adapters}),
        );
    }
    match &s.quant {
        None => {}
        Some(Quant::FourBit {
            double,
            compute: ScalarType::BF16,
        }) => {
            set("quant", json!("nf4"));
            if !double {
                set("double_quant", json!(false));
            }
        }
        Some(_) => return Err("a quantisation other than nf4 computed in bf16".into()),
    }
    match s.attention {
        Attention::Sdpa => {}
        Attention::Eager => set("attn", json!("eager")),
        _ => set("attn", json!("flash_attention_2")),
    }
    match s.mask {
        Mask::Absent => {}
        Mask::Ones => set("mask", json!("ones")),
        Mask::Padding => set("mask", json!("pad")),
    }
    if s.loading == Loading::Warmup {
        set("load", json!("warmup"));
    }
    if let Work::Generate(g) = s.work {
        set("new", json!(g.new));
        if g.beams > 1 {
            set("beams", json!(g.beams));
        }
        if g.cache == CacheChoice::Static {
            set("cache", json!("static"));
        }
        if g.sample {
            set("sample", json!(true));
        }
        if g.eos {
            set("eos", json!(2));
        }
    }
    if !s.use_cache {
        set("use_cache", json!(false));
    }
    Ok(Value::Object(c))
}

/// JSON as Python writes it.
fn python(v: &Value, dent: usize) -> String {
    let pad = " ".repeat(dent + 4);
    match v {
        Value::Null => "None".into(),
        Value::Bool(b) => if *b { "True" } else { "False" }.into(),
        Value::Number(n) => n.to_string(),
        // JSON strings are Python strings
        Value::String(_) => v.to_string(),
        Value::Array(a) => {
            let items: Vec<String> = a.iter().map(|x| python(x, dent + 4)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(o) if o.is_empty() => "{}".into(),
        Value::Object(o) => {
            let rows: String = o
                .iter()
                .map(|(k, x)| format!("{pad}{}: {},\n", json!(k), python(x, dent + 4)))
                .collect();
            format!("{{\n{rows}{}}}", " ".repeat(dent))
        }
    }
}

/// The script of a job.
///
/// # Errors
/// What it cannot perform.
pub fn script(id: &str, config: &Value) -> Result<String, String> {
    let text = |k: &str| config.get(k).and_then(Value::as_str).unwrap_or("");
    let family = config["model"]["family"].as_str().unwrap_or("");
    if BY_HAND.contains(&family) {
        return Err(format!(
            "{family} is a hand-written model, not one of transformers; dry-run its own script"
        ));
    }
    for (k, only) in [
        ("parallel", "several devices"),
        ("trainer", "TRL's trainers"),
        ("freeze", "frozen layers"),
        ("loss", "another loss"),
        ("zero_grad", "late zero_grad"),
    ] {
        if config.get(k).is_some_and(|v| !v.is_null()) {
            return Err(format!("{only} (`{k}`)"));
        }
    }
    let ckpt = config
        .get("ckpt")
        .is_some_and(|v| !v.is_null() && *v != json!(false));
    if config.get("ckpt").is_some_and(Value::is_object) {
        return Err("checkpointing that is reentrant, selective or of every nth layer".into());
    }
    let quantised = match text("quant") {
        "" => false,
        "nf4" | "fp4" => true,
        q => return Err(format!("quantisation {q}")),
    };
    let train = text("kind") == "train";
    let trainer = text("loop") == "trainer";
    let mut out = format!(
        "\"\"\"{id}: performs the job below and writes what PyTorch's allocator says about it, as a `torch-run` record.\n\nusage: python THIS.py [RECORD.json]      (written by tonnage measure; needs torch, transformers{}{})\n\"\"\"\n",
        if config.get("peft").is_some() {
            ", peft"
        } else {
            ""
        },
        if quantised { ", bitsandbytes" } else { "" }
    );
    out.push_str(
        include_str!("../../python/measure/head.py")
            .split_once("\n\n# on a null")
            .map_or("", |x| x.0),
    );
    out.push_str(&format!(
        "\n\nID = {}\nJOB = {}\n\n# on a null",
        json!(id),
        python(config, 0)
    ));
    out.push_str(
        include_str!("../../python/measure/head.py")
            .split_once("\n\n# on a null")
            .map_or("", |x| x.1),
    );
    if quantised {
        out.push_str(include_str!("../../python/measure/quant.py"));
    }
    out.push_str(include_str!("../../python/measure/setup.py"));
    let mut line = |t: &str| {
        out.push_str("    ");
        out.push_str(t);
        out.push('\n');
    };
    if quantised {
        line("place(quantise(model))");
    } else {
        if text("load") == "warmup" {
            line(
                "# one block of the model's size, given back to the allocator before the weights arrive: from_pretrained(device_map=...)",
            );
            line(
                "n = sum(t.numel() * t.element_size() for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())",
            );
            line("warm = torch.empty(n // 2, dtype=torch.float16, device=\"cuda\")");
            line("del warm");
        }
        line("place(model)");
    }
    line("# packed weights count as they are stored; adapters are counted apart");
    line("extra[\"param_count\"] = sum(p.numel() for p in model.parameters())");
    if let Some(l) = config.get("peft") {
        line("from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training");
        line("");
        if quantised {
            line("phases.mark(-1, \"kbit_prepare\")");
            line("model.is_loaded_in_4bit = True");
            line(&format!(
                "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing={}, gradient_checkpointing_kwargs={{\"use_reentrant\": False}})",
                if ckpt { "True" } else { "False" }
            ));
        }
        line("phases.mark(-1, \"peft\")");
        let r = l["r"].as_u64().unwrap_or(8);
        line(&format!(
            "adapters = LoraConfig(r={r}, lora_alpha={}, lora_dropout={}, bias=\"none\", target_modules={}, task_type=\"CAUSAL_LM\")",
            2 * r,
            l.get("dropout").unwrap_or(&json!(0.05)),
            python(&l["targets"], 0)
        ));
        line(&format!(
            "model = get_peft_model(model, adapters, autocast_adapter_dtype={})",
            python(l.get("fp32_adapters").unwrap_or(&json!(true)), 0)
        ));
    }
    if ckpt && !trainer {
        if config.get("peft").is_some() && !quantised {
            line("model.enable_input_require_grads()");
        }
        line(
            "model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={\"use_reentrant\": False})",
        );
    }
    if train {
        line("model.train()");
        line("model.config.use_cache = False");
    } else {
        line("model.eval()");
    }
    out.push_str(include_str!("../../python/measure/prepared.py"));
    if !train {
        out.push_str(include_str!("../../python/measure/infer.py"));
    } else if trainer {
        out.push_str(include_str!("../../python/measure/trainer.py"));
    } else {
        out.push_str(include_str!("../../python/measure/optimizer.py"));
        out.push_str(include_str!("../../python/measure/plain.py"));
    }
    out.push_str(include_str!("../../python/measure/tail.py"));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_python() {
        let v = json!({"a": null, "b": [true, 1.5, "x\"y"], "c": {}});
        assert_eq!(
            python(&v, 0),
            "{\n    \"a\": None,\n    \"b\": [True, 1.5, \"x\\\"y\"],\n    \"c\": {},\n}"
        );
    }

    #[test]
    fn what_cannot_be_performed_is_refused() {
        for (c, says) in [
            (
                json!({"kind": "train", "model": {"family": "pose"}}),
                "hand-written",
            ),
            (
                json!({"kind": "train", "model": {"family": "llama"}, "quant": "int8"}),
                "int8",
            ),
            (
                json!({"kind": "train", "model": {"family": "llama"}, "parallel": {"dp": 2}}),
                "several devices",
            ),
        ] {
            assert!(script("x", &c).unwrap_err().contains(says));
        }
    }

    #[test]
    fn a_script_has_the_parts_of_its_job_and_no_others() {
        let c = json!({"kind": "train", "model": {"family": "llama", "args": {}}, "quant": "nf4", "loop": "trainer", "ckpt": true, "peft": {"r": 8, "targets": ["q_proj"]}});
        let s = script("x", &c).unwrap();
        assert!(
            s.contains("prepare_model_for_kbit_training(model, use_gradient_checkpointing=True")
        );
        assert!(s.contains("transformers.Trainer(") && s.contains("def quantise"));
        assert!(!s.contains("def optimizer(") && !s.contains("model.generate("));
        let c = json!({"kind": "train", "model": {"family": "gpt2", "args": {}}, "optim": "sgd"});
        let s = script("y", &c).unwrap();
        assert!(
            s.contains("def optimizer(")
                && !s.contains("get_peft_model")
                && !s.contains("def quantise")
        );
    }
}
