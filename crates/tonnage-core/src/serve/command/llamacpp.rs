//! llama.cpp's command lines (v0.5.0; common/arg.cpp, the table of tools/server/README.md), and Ollama's.

use super::{Command, Given, Group, Role, Syntax, Takes, count, quoted, unsupported, usage};
use crate::doc::Diagnostic;
use crate::serve::answer::Chosen;
use crate::serve::llamacpp::fit::{Fitted, Request};
use crate::serve::llamacpp::{FlashAttention, Load, Settings};
use tonnage_units::{Bytes, GgmlType};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Server,
    /// The chat program: the server's core with one slot.
    Cli,
    /// Plain completion: logits of a whole batch.
    Completion,
    /// Ollama starts llama-server with its own defaults.
    Ollama,
}

/// What a command line says.
#[derive(Clone, Debug)]
pub struct Llama {
    pub tool: Tool,
    /// `-m FILE`.
    pub file: Option<String>,
    /// `-hf`, `-mu` or Ollama's name of a model.
    pub named: Option<String>,
    /// `-hff`: the file in the repository.
    pub hf_file: Option<String>,
    /// Devices are the caller's.
    pub settings: Settings,
    /// `-dev none`: no device.
    pub cpu_only: bool,
    /// Number of devices that the command line names, where it does.
    pub devices: Option<usize>,
    /// Whether `-c` and `-ngl` are given: else the engine's own fit may lower them.
    pub context_given: bool,
    pub layers_given: bool,
    /// `--fit on` (the default).
    pub fit: bool,
    /// `--fit-target`: bytes to be left free on a device.
    pub fit_target: u64,
    /// `--fit-ctx`: least context of a stream.
    pub fit_context: u64,
    pub chosen: Vec<Chosen>,
    pub not_memory: Vec<String>,
    /// Flags of the launch command beside the model.
    pub flags: Vec<String>,
    pub notes: Vec<String>,
}

impl Llama {
    /// What depends on the machine: Ollama's context by the memory of all cards, in bytes, and at most what the model was trained for.
    pub fn resolve(&mut self, vram: u64, trained: u64) {
        if self.tool != Tool::Ollama {
            return;
        }
        if self.context_given {
            // the Modelfile's own
            if let Some(c) = self.chosen.iter_mut().find(|c| c.name == "--ctx-size") {
                c.value = self.settings.context_len.to_string();
                c.from = "the model's PARAMETER num_ctx".into();
            }
            return;
        }
        let by_card = match vram >> 30 {
            47.. => 262_144,
            23.. => 32_768,
            _ => 4096,
        };
        self.settings.context_len = if trained == 0 {
            by_card
        } else {
            by_card.min(trained)
        };
        if let Some(c) = self.chosen.iter_mut().find(|c| c.name == "--ctx-size") {
            c.value = self.settings.context_len.to_string();
            c.from = "Ollama's default for this much device memory (OLLAMA_CONTEXT_LENGTH)".into();
        }
    }

    /// What the engine's own fit is asked for; None: `--fit off`, or Ollama, whose server gets its context and layers given.
    pub fn fit_request(&self) -> Option<Request> {
        (self.fit && self.tool != Tool::Ollama).then_some(Request {
            context_given: self.context_given && self.settings.context_len > 0,
            full_context: self.context_given && self.settings.context_len == 0,
            layers_given: self.layers_given,
            margin: self.fit_target,
            context_min: self.fit_context,
        })
    }

    /// Takes over what the fit made of context and layers.
    pub fn fitted(&mut self, f: &Fitted) {
        self.settings.context_len = f.context_len;
        self.settings.gpu_layers = f.gpu_layers;
        if let Some(split) = &f.tensor_split {
            self.settings.tensor_split = Some(split.clone());
            let split: Vec<String> = split.iter().map(ToString::to_string).collect();
            self.chosen.push(Chosen {
                name: "--tensor-split".into(),
                value: split.join(","),
                from: "--fit: layers of each device, from the last to the first".into(),
            });
        }
        let margin = Bytes(self.fit_target);
        let mut set = |name: &str, value: u64, from: String| {
            if let Some(c) = self.chosen.iter_mut().find(|c| c.name == name) {
                (c.value, c.from) = (value.to_string(), from);
            }
        };
        match f.context_from {
            Some(most) => {
                let from = format!("--fit: of {most}, so that {margin} stay free");
                set("--ctx-size", f.context_len, from);
            }
            None if !self.context_given => {
                let from = "--fit: as long as it was trained, for each sequence".into();
                set("--ctx-size", f.context_len, from);
            }
            None => {}
        }
        if let Some(all) = f.layers_of {
            let from = format!("--fit: of {all}, so that {margin} stay free");
            set("--n-gpu-layers", f.gpu_layers, from);
            self.notes.push(format!(
                "the engine's own fit (--fit on) leaves {} of {all} layers on the host, where they are much slower; `-ngl all` asks for the device alone",
                all - f.gpu_layers
            ));
        }
        if f.given_up {
            self.notes.push(format!(
                "the engine's own fit wants {margin} free and gives up: -ngl (or -ts) forbids to move layers; it tries to start all the same"
            ));
        }
    }

    /// The command that starts it, for a model file.
    pub fn launch(&self, file: &str) -> String {
        let program = match self.tool {
            Tool::Server => "llama-server",
            Tool::Cli => "llama-cli",
            Tool::Completion => "llama-completion",
            Tool::Ollama => {
                return format!(
                    "ollama run {}",
                    quoted(self.named.as_deref().unwrap_or(file))
                );
            }
        };
        let mut t = match (&self.file, &self.named) {
            (None, Some(repo)) => format!("{program} -hf {}", quoted(repo)),
            _ => format!("{program} -m {}", quoted(file)),
        };
        if let Some(f) = &self.hf_file {
            t.push_str(&format!(" -hff {}", quoted(f)));
        }
        for f in &self.flags {
            t.push(' ');
            t.push_str(f);
        }
        t
    }
}

const SYNTAX: Syntax = Syntax {
    engine: "llama.cpp",
    python: false,
    groups: &[
        Group(
            Role::Memory,
            Takes::One,
            "-c|--context-len|--n-ctx|--ctx-size -b|--batch-size -ub|--ubatch-size -np|--parallel -ctk|--cache-type-k -ctv|--cache-type-v \
             -ngl|--gpu-layers|--n-gpu-layers -ts|--tensor-split -dev|--device -sm|--split-mode -mg|--main-gpu -m|--model \
             -hf|-hfr|--hf-repo -hff|--hf-file -mu|--model-url -lm|--load-mode -fit|--fit -fitt|--fit-target -fitc|--fit-ctx",
        ),
        Group(Role::Memory, Takes::Maybe, "-fa|--flash-attn"),
        Group(
            Role::Memory,
            Takes::Nothing,
            "-kvu|--kv-unified -no-kvu|--no-kv-unified --swa-full -kvo|--kv-offload -nkvo|--no-kv-offload --repack -nr|--no-repack --op-offload \
             --no-op-offload -cmoe|--cpu-moe --mmap --no-mmap --mlock --embeddings|--embedding",
        ),
        Group(
            Role::NotModelled,
            Takes::One,
            "--rpc -ot|--override-tensor -ncmoe|--n-cpu-moe --moe-cache-mib -ncffn|--n-cpu-ffn --override-kv --lora --lora-scaled --control-vector \
             --control-vector-scaled -mm|--mmproj -mmu|--mmproj-url -md|--spec-draft-model|--model-draft -hfd|--hf-repo-draft \
             --kv-unified-per-slot --models-dir --models-preset -dr|--docker-repo -lcs|--lookup-cache-static -lcd|--lookup-cache-dynamic",
        ),
        Group(
            Role::NotModelled,
            Takes::Nothing,
            "--no-host --rerank|--reranking",
        ),
        Group(
            Role::Unrelated,
            Takes::One,
            "-t|--threads -tb|--threads-batch -C|--cpu-mask -Cr|--cpu-range --cpu-strict --prio --poll -Cb|--cpu-mask-batch -Crb|--cpu-range-batch \
             --cpu-strict-batch --prio-batch --poll-batch -n|--predict|--n-predict --keep --rope-scaling --rope-scale --rope-freq-base \
             --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -dt|--defrag-thold \
             -lzm|--lazy-mode --numa -hft|--hf-token --log-file --log-colors -lv|--verbosity|--log-verbosity --samplers -s|--seed \
             --sampler-seq|--sampling-seq --temp|--temperature --top-k --top-p --min-p --top-nsigma|--top-n-sigma --xtc-probability --xtc-threshold \
             --typical|--typical-p --repeat-last-n --repeat-penalty --presence-penalty --frequency-penalty --dry-multiplier --dry-base \
             --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp \
             --mirostat --mirostat-lr --mirostat-ent -l|--logit-bias --grammar --grammar-file -j|--json-schema -jf|--json-schema-file \
             -ctxcp|--swa-checkpoints|--ctx-checkpoints -cms|--checkpoint-min-step -cram|--cache-ram -r|--reverse-prompt --pooling --image-min-tokens \
             --image-max-tokens -a|--alias --tags --embd-normalize --host --port --path --cors-origins --cors-methods --cors-headers --api-prefix \
             --ui-config --ui-config-file --tools --api-key --api-key-file --ssl-key-file --ssl-cert-file --chat-template-kwargs -to|--timeout \
             --sse-ping-interval --threads-http --cache-reuse --slot-save-path --media-path --models-max --reasoning-format -rea|--reasoning \
             --reasoning-effort --reasoning-budget --reasoning-budget-message --chat-template --chat-template-file -p|--prompt -f|--file \
             -sys|--system-prompt -sysf|--system-prompt-file --in-prefix --in-suffix",
        ),
        Group(
            Role::Unrelated,
            Takes::Nothing,
            "-h|--usage|--help --version -e|--escape --no-escape --perf --no-perf --list-devices --check-tensors --log-disable --log-prefix \
             --no-log-prefix --log-timestamps --no-log-timestamps -v|--log-verbose|--verbose --offline --ignore-eos -bs|--backend-sampling \
             --cache-idle-slots --no-cache-idle-slots --context-shift --no-context-shift -sp|--special --warmup --no-warmup --spm-infill \
             -cb|--cont-batching -nocb|--no-cont-batching --mmproj-auto --no-mmproj --no-mmproj-auto --reuse-port --ui --webui --no-ui --no-webui \
             --cache-prompt --no-cache-prompt --metrics --props --slots --no-slots --models-autoload --no-models-autoload --jinja --no-jinja \
             --reasoning-preserve --no-reasoning-preserve -i|--interactive -if|--interactive-first -cnv|--conversation -no-cnv|--no-conversation \
             -st|--single-turn --color --no-display-prompt --simple-io -mli|--multiline-input",
        ),
    ],
};

fn start(tool: Tool) -> Llama {
    let settings = Settings {
        // the server and the chat program ask for one row of logits a slot (`server_output_limits`)
        n_outputs_max: 1,
        ..Settings::default()
    };
    Llama {
        tool,
        file: None,
        named: None,
        hf_file: None,
        settings,
        cpu_only: false,
        devices: None,
        context_given: false,
        layers_given: false,
        fit: true,
        fit_target: 1 << 30,
        fit_context: 4096,
        chosen: vec![],
        not_memory: vec![],
        flags: vec![],
        notes: vec![],
    }
}

/// Reads the words after the program's name.
///
/// # Errors
/// See [`super::parse`].
pub fn parse(tool: Tool, words: &[&str]) -> Result<Command, Diagnostic> {
    let (flags, others) = SYNTAX.scan(words)?;
    let mut l = start(tool);
    if let Some(extra) = others.first() {
        let help = if extra.ends_with(".gguf") {
            "a model file is given with -m FILE"
        } else {
            "every word belongs to a flag"
        };
        return Err(usage(format!("`{extra}` is no flag's value"), help));
    }
    let mut slots = None;
    let mut unified = None;
    for g in &flags {
        if g.role == Role::Unrelated {
            l.not_memory.push(g.line());
            l.flags.push(g.line());
            continue;
        }
        read(&mut l, g, &mut slots, &mut unified)?;
    }
    if l.file.is_none() && l.named.is_none() {
        return Err(usage("no model: -m FILE is missing", "-m model.gguf"));
    }
    let s = &mut l.settings;
    // `-np -1`: four slots of one cache (tools/server/server.cpp)
    s.n_seq = match (slots, tool) {
        (Some(n), _) => n,
        (None, Tool::Server) => 4,
        (None, _) => 1,
    };
    s.kv_unified = unified.unwrap_or(slots.is_none() && tool == Tool::Server);
    s.n_outputs_max = match tool {
        Tool::Completion => 0,
        _ if s.embeddings => 0,
        _ => s.n_seq,
    };
    describe(&mut l, slots.is_some());
    Ok(Command::Llama(Box::new(l)))
}

fn read(
    l: &mut Llama,
    g: &Given,
    slots: &mut Option<u64>,
    unified: &mut Option<bool>,
) -> Result<(), Diagnostic> {
    let (name, v) = (g.name, g.value());
    let number = || count(&g.typed, v);
    let one_of = |known: &str| {
        usage(
            format!("{} {v}: not one of {known}", g.typed),
            format!("give one of {known}"),
        )
    };
    let s = &mut l.settings;
    let mut keep = true;
    match name {
        "--model" => (l.file, keep) = (Some(v.into()), false),
        "--hf-repo" | "--model-url" => (l.named, keep) = (Some(v.into()), false),
        "--hf-file" => (l.hf_file, keep) = (Some(v.into()), false),
        "--ctx-size" => (s.context_len, l.context_given) = (number()?, true),
        "--batch-size" => s.n_batch = number()?,
        "--ubatch-size" => s.n_ubatch = number()?,
        "--parallel" if v == "-1" || v == "auto" => {}
        "--parallel" => *slots = Some(number()?.max(1)),
        "--kv-unified" => *unified = Some(true),
        "--no-kv-unified" => *unified = Some(false),
        "--swa-full" => s.swa_full = true,
        "--flash-attn" => {
            s.flash_attention = match v {
                "" | "on" | "1" | "true" | "enabled" => FlashAttention::On,
                "off" | "0" | "false" | "disabled" => FlashAttention::Off,
                "auto" | "-1" => FlashAttention::Auto,
                _ => return Err(one_of("on, off, auto")),
            }
        }
        "--cache-type-k" => s.type_k = cache_type(g)?,
        "--cache-type-v" => s.type_v = cache_type(g)?,
        "--n-gpu-layers" => match v {
            "auto" | "-1" => {}
            "all" | "-2" => (s.gpu_layers, l.layers_given) = (999, true),
            _ => (s.gpu_layers, l.layers_given) = (number()?, true),
        },
        "--tensor-split" => {
            let parts: Result<Vec<f32>, _> = v
                .split([',', '/'])
                .map(|p| p.trim().parse::<f32>())
                .collect();
            let parts = parts
                .ok()
                .filter(|p| p.iter().all(|x| x.is_finite() && *x >= 0.0))
                .ok_or_else(|| {
                    usage(
                        format!("{} {v}: not proportions", g.typed),
                        "for example 3,1",
                    )
                })?;
            l.devices = Some(parts.len());
            s.tensor_split = Some(parts);
        }
        "--device" if v == "none" => l.cpu_only = true,
        "--device" => l.devices = Some(v.split(',').count()),
        "--split-mode" => match v {
            "none" => l.devices = Some(1),
            "layer" => {}
            "row" | "tensor" => {
                return Err(unsupported(
                    format!("llama.cpp with {} {v}", g.typed),
                    "layer is",
                ));
            }
            _ => return Err(one_of("none, layer, row, tensor")),
        },
        "--main-gpu" => {
            number()?;
        }
        "--kv-offload" => s.offload_kqv = true,
        "--no-kv-offload" => s.offload_kqv = false,
        "--repack" => s.repack = true,
        "--no-repack" => s.repack = false,
        "--op-offload" => s.op_offload = true,
        "--no-op-offload" => s.op_offload = false,
        "--cpu-moe" => s.cpu_moe = true,
        "--mmap" => s.load = Load::Mmap,
        "--no-mmap" => s.load = Load::Read,
        "--mlock" => {}
        "--load-mode" => match v {
            "auto" | "mmap" | "mmap+mlock" => s.load = Load::Mmap,
            "none" | "mlock" | "dio" => s.load = Load::Read,
            _ => return Err(one_of("auto, none, mmap, mlock, mmap+mlock, dio")),
        },
        "--embedding" => s.embeddings = true,
        "--fit" => match v {
            "on" => l.fit = true,
            "off" => l.fit = false,
            _ => return Err(one_of("on, off")),
        },
        // of several values the first is the first device's
        "--fit-target" => {
            let mib = v.split([',', '/']).next().unwrap_or(v);
            l.fit_target = count(&g.typed, mib)? << 20;
        }
        "--fit-ctx" => l.fit_context = number()?,
        other => return Err(unsupported(format!("llama.cpp with {other}"), "others are")),
    }
    if keep {
        let mut t = name.to_string();
        for v in &g.values {
            t.push(' ');
            t.push_str(&quoted(v));
        }
        l.flags.push(t);
    }
    Ok(())
}

/// Types that the engine takes for a cache.
pub const CACHE_TYPES: [&str; 9] = [
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
];

fn cache_type(g: &Given) -> Result<GgmlType, Diagnostic> {
    let v = g.value();
    CACHE_TYPES
        .contains(&v)
        .then(|| v.parse().ok())
        .flatten()
        .ok_or_else(|| {
            let all = CACHE_TYPES.join(", ");
            let message = format!("{} {v}: not a type of the cache", g.typed);
            usage(message, format!("one of {all}"))
        })
}

/// The settings that decide about memory, with where they are from.
fn describe(l: &mut Llama, slots_given: bool) {
    let given = |names: &[&str]| {
        let is = |f: &String| names.iter().any(|n| f.split(' ').next() == Some(n));
        l.flags.iter().any(is)
    };
    let s = &l.settings;
    let from = |names: &[&str], default: &str| match given(names) {
        true => "given".to_string(),
        false => default.to_string(),
    };
    let mut out = Vec::new();
    let mut add = |name: &str, value: String, from: String| {
        out.push(Chosen {
            name: name.into(),
            value,
            from,
        });
    };
    let context = match s.context_len {
        0 => "the model's".into(),
        n => n.to_string(),
    };
    add(
        "--ctx-size",
        context,
        from(&["--ctx-size"], "default: as long as it was trained"),
    );
    let layers = match s.gpu_layers {
        999 => "all".into(),
        n => n.to_string(),
    };
    add(
        "--n-gpu-layers",
        layers,
        from(&["--n-gpu-layers"], "default: all that fit"),
    );
    let slots = match l.tool {
        Tool::Server if !slots_given => "default: four slots share one cache",
        Tool::Ollama => "OLLAMA_NUM_PARALLEL's default",
        _ => "default",
    };
    add(
        "--parallel",
        s.n_seq.to_string(),
        if slots_given {
            "given".into()
        } else {
            slots.into()
        },
    );
    let name = match s.kv_unified {
        true => "--kv-unified",
        false => "--no-kv-unified",
    };
    add(name, "yes".into(), from(&[name], "default"));
    let batch = if l.tool == Tool::Ollama {
        "Ollama's"
    } else {
        "default"
    };
    add(
        "--batch-size",
        s.n_batch.to_string(),
        from(&["--batch-size"], batch),
    );
    add(
        "--ubatch-size",
        s.n_ubatch.to_string(),
        from(&["--ubatch-size"], batch),
    );
    add(
        "--cache-type-k",
        s.type_k.to_string(),
        from(&["--cache-type-k"], "default"),
    );
    add(
        "--cache-type-v",
        s.type_v.to_string(),
        from(&["--cache-type-v"], "default"),
    );
    let flash = match s.flash_attention {
        FlashAttention::Auto => "auto",
        FlashAttention::On => "on",
        FlashAttention::Off => "off",
    };
    add(
        "--flash-attn",
        flash.into(),
        from(&["--flash-attn"], "default"),
    );
    let load = match s.load {
        Load::Mmap => "mmap",
        _ => "read",
    };
    add(
        "--load-mode",
        load.into(),
        from(&["--load-mode", "--no-mmap", "--mmap"], "default"),
    );
    for (name, on) in [
        ("--swa-full", s.swa_full),
        ("--cpu-moe", s.cpu_moe),
        ("--no-kv-offload", !s.offload_kqv),
        ("--no-op-offload", !s.op_offload),
        ("--no-repack", !s.repack),
        ("--embedding", s.embeddings),
    ] {
        if on {
            add(name, "yes".into(), "given".into());
        }
    }
    l.chosen = out;
}

/// `ollama run MODEL`: llama-server with Ollama's defaults: one request at a time (OLLAMA_NUM_PARALLEL), batches of 512, and a context by the
/// card's memory: 4,096 below 23 GiB, 32,768 below 47 GiB, else 262,144 (`server/routes.go`, at most what the model was trained for).
pub fn ollama(words: &[&str]) -> Result<Command, Diagnostic> {
    const OLLAMA: Syntax = Syntax {
        engine: "ollama run",
        python: true,
        groups: &[
            Group(
                Role::Unrelated,
                Takes::Nothing,
                "--verbose --insecure --nowordwrap --hidethinking --experimental",
            ),
            Group(Role::Unrelated, Takes::One, "--format --keepalive --think"),
        ],
    };
    let (flags, others) = OLLAMA.scan(words)?;
    let mut l = start(Tool::Ollama);
    // words after the model are the prompt
    let Some(model) = others.first() else {
        return Err(usage("ollama run: no model", "ollama run llama3.2:3b"));
    };
    l.named = Some(model.clone());
    l.not_memory = flags.iter().map(Given::line).collect();
    l.settings.n_seq = 1;
    l.settings.n_batch = 512;
    l.settings.n_outputs_max = 1;
    describe(&mut l, false);
    Ok(Command::Llama(Box::new(l)))
}
