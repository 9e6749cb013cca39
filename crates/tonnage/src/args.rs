//! The command line. The settings of a job are flags by themselves: `tonnage_core::job::SETTINGS` is the list.

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use tonnage_core::job::{Kind, SETTINGS};
use tonnage_units::{ByteStyle, Bytes};

/// Where every byte of GPU memory goes.
#[derive(Parser, Debug)]
#[command(
    name = "tonnage",
    version,
    about,
    after_help = "Examples:\n  tonnage estimate job.toml --gpu rtx-3090\n  tonnage estimate --model gpt2 --seq-len 1024 --batch-size 4\n  tonnage compare job.toml --sweep micro_batch_size=4,8,16\n\nExit status: 0 fits or done, 1 does not fit, 2 usage, 3 bad input, 4 unavailable or not supported, 70 a defect of ours."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Looks.
#[derive(Args, Debug)]
pub struct Global {
    /// Units of amounts
    #[arg(long, global = true, value_enum, default_value_t = Units::Iec)]
    pub units: Units,
    /// Only ASCII characters
    #[arg(long, global = true)]
    pub ascii: bool,
    /// Columns of text (default: the terminal's, else 100)
    #[arg(long, global = true, value_name = "N")]
    pub width: Option<usize>,
    /// Your own cards and instances (docs/catalogs.md), instead of $XDG_CONFIG_HOME/tonnage/gpus.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub catalog: Vec<PathBuf>,
}

/// `--units`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Units {
    /// 14.96 GiB
    Iec,
    /// 16.06 GB
    Si,
    /// 14.96 GiB (16.06 GB)
    Both,
}

impl Units {
    /// The library's word for it.
    pub fn style(self) -> ByteStyle {
        match self {
            Units::Iec => ByteStyle::Iec,
            Units::Si => ByteStyle::Si,
            Units::Both => ByteStyle::Both,
        }
    }
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// The memory footprint of a job, and whether it fits a card
    #[command(
        after_help = "Examples:\n  tonnage estimate examples/deepseek-qlora.toml\n  tonnage estimate gpt-configs/150M.json --gpu rtx-4090\n  tonnage estimate --model gpt2 --seq-len 1024 --batch-size 4 --precision bf16-mixed --explain saved_activations\n  tonnage estimate model.gguf --context-len 8192 --gpu rtx-4090 (any flag of llama-server)\n  tonnage estimate --gpu rtx-4090 -- vllm serve Qwen/Qwen2.5-7B"
    )]
    Estimate(Box<EstimateArgs>),
    /// Jobs, precisions, batches or lengths side by side
    #[command(
        after_help = "Examples:\n  tonnage compare a.toml b.toml\n  tonnage compare gpt-configs/150M.json --sweep batch-size=8,16,32,64\n  tonnage compare job.toml --sweep precision=fp32,bf16-mixed,bf16 --format md\n  tonnage compare train.toml --sweep kind=train,generate --new-tokens 256 --gpu rtx-3090 --gpu rtx-2060-6gb"
    )]
    Compare(Box<CompareArgs>),
    /// Cards for a job; the largest batch, length or rank on a card; what a memory can train; what a model needs
    #[command(
        after_help = "Examples:\n  tonnage fit examples/deepseek-qlora.toml\n  tonnage fit examples/deepseek-qlora.toml --gpu rtx-3060-12gb --largest batch\n  tonnage fit --memory 12GiB\n  tonnage fit examples/gpt2.toml --gpu rtx-3060-12gb --lengths 128,256,512,1024\n  tonnage fit --model 7B --methods lora,qlora\n  tonnage fit qwen3-30b-a3b.Q4_K_M --gpu rtx-3060-12gb (any flag of llama-server)\n  tonnage fit --gpu rtx-4090 -- vllm serve Qwen/Qwen2.5-7B"
    )]
    Fit(Box<FitArgs>),
    /// The job as a file of the tool that runs it: trl, hf, axolotl, llamafactory, torchtune, ...
    #[command(
        after_help = "Examples:\n  tonnage export\n  tonnage export examples/deepseek-qlora.toml --to axolotl\n  tonnage export job.toml --to trl --out sft.yaml && tonnage estimate sft.yaml\n\nWhat the file cannot say is an error that names the field."
    )]
    Export(Box<crate::commands::export::ExportArgs>),
    /// One file about a job: footprint, timeline, sweeps against cards, what fits, what to change
    #[command(
        after_help = "Example:\n  tonnage report examples/deepseek-qlora.toml --gpu rtx-3060-12gb -o report.html"
    )]
    Report(Box<crate::commands::report::ReportArgs>),
    /// Your own script without a GPU: the real framework and allocator on a null device
    #[command(
        after_help = "Examples:\n  tonnage dry-run --gpu rtx-3060-12gb -- python train.py\n  tonnage dry-run --gpu a100-sxm4-80gb -- torchrun --nproc-per-node 2 train.py\n  tonnage dry-run --world 64 --rank 0 --gpu h100-pcie -- python train.py\n  tonnage dry-run --set batch=2,4,8 --scale-to 64 --save t.jsonl.gz -- python train.py --batch {batch}\n\nEnds with the script's own status (--verdict-exit: ours). Linux on x86-64 with glibc and a CUDA build of torch."
    )]
    DryRun(Box<crate::commands::dry_run::DryRunArgs>),
    /// Measured runs against predictions, and what they correct on this machine
    #[command(
        after_help = "Examples:\n  tonnage calibrate\n  tonnage calibrate job.toml --gpu rtx-3090 --reserved \"11.4 GiB\" --device \"12.1 GiB\"\n  tonnage history record 7 | tonnage calibrate job.toml --gpu rtx-3090 --record -\n  tonnage calibrate job.toml --gpu rtx-3090"
    )]
    Calibrate(crate::commands::calibrate::CalibrateArgs),
    /// What an out-of-memory log or a memory snapshot means, and what to change
    #[command(
        after_help = "Examples:\n  tonnage explain train.log\n  tonnage explain train.log.gz --job job.toml --gpu rtx-4090\n  kubectl logs pod | tonnage explain - --format json\n  tonnage explain snapshot.pickle --replay expandable_segments:True\n  tonnage explain snapshot.pickle --format html > snapshot.html\n  tonnage explain early.pickle late.pickle"
    )]
    Explain(crate::commands::explain::ExplainArgs),
    /// A recorded trace under other allocator settings, on another card, or at another size
    #[command(
        after_help = "Examples:\n  tonnage replay trace.jsonl.gz --expandable-segments\n  tonnage replay trace.jsonl.gz --gpu rtx-3060-12gb\n  tonnage replay --scale-to 64 4=t-4.jsonl.gz 8=t-8.jsonl.gz 16=t-16.jsonl.gz"
    )]
    Replay(crate::commands::replay::ReplayArgs),
    /// Where a prediction and a recorded trace part, by component and module
    #[command(
        after_help = "Example:\n  tonnage diff job.toml trace.jsonl.gz\n\nExit status: 0 equal peaks, 1 not."
    )]
    Diff(Box<crate::commands::diff::DiffArgs>),
    /// Performs a job with the real libraries and appends a `torch-run` record
    #[command(
        after_help = "Examples:\n  tonnage measure job.toml --keep job.py\n  tonnage measure --null --model gpt2 --seq-len 256 --gpu a100-sxm4-80gb --python venv/bin/python\n  tonnage measure --null groundtruth/torch-trace-dev.jsonl --id llama-tiny-plain-bf16-sdpa-mask-pad"
    )]
    Measure(Box<crate::commands::measure::MeasureArgs>),
    /// Holds the memory numbers of a document against the simulator and against each other
    #[command(
        after_help = "Examples:\n  tonnage audit GUIDE.md\n  tonnage audit README.md --claims\n  tonnage audit claims.json --bindings claims.audit.toml --format md\n\nExit status: 1 where a claim fails."
    )]
    Audit(crate::commands::audit::AuditArgs),
    /// The best settings of a job on a card, and the shortest list of changes that makes it fit
    #[command(
        after_help = "Examples:\n  tonnage plan examples/deepseek-qlora.toml --gpu rtx-3070\n  tonnage plan --model meta-llama/Llama-2-7b-hf --seq-len 2048 --gpu rtx-4090 --allow adapter,quant\n  tonnage plan job.toml --gpu a100-sxm4-80gb --objective cost --tokens 1e9 --format md\n\nCtrl-C ends the search with the best so far."
    )]
    Plan(Box<crate::commands::plan::PlanArgs>),
    /// Scores predictions on recorded runs
    #[command(after_help = "Example:\n  tonnage validate groundtruth/torch-trace-dev.jsonl")]
    Validate(ValidateArgs),
    /// The model catalog; --check counts every configuration and compares
    #[command(
        after_help = "Examples:\n  tonnage models llama\n  tonnage models org/name --revision v1.0\n  tonnage models path/to/folder\n  tonnage models --check"
    )]
    Models(ModelsArgs),
    /// The GPU catalog: one card with its sources, or the cards that pass the filters
    #[command(
        after_help = "Examples:\n  tonnage gpus rtx-4090\n  tonnage gpus --vendor nvidia --min-memory 40GiB --capability 8.0"
    )]
    Gpus(crate::commands::gpus::GpusArgs),
    /// Cloud instances: their GPUs, and prices with date and source
    #[command(
        after_help = "Examples:\n  tonnage instances --gpu h100-sxm --count 8\n  tonnage instances --provider aws,gcp --min-memory 80GiB\n  tonnage instances aws/p4d.24xlarge"
    )]
    Instances(crate::commands::instances::InstancesArgs),
    /// Every GPU's memory as it is now, and as it goes on
    #[command(
        after_help = "Examples:\n  tonnage watch\n  tonnage watch --once --alert 0.9\n  tonnage watch --log memory.csv --interval 0.5\n  tonnage watch --prometheus 127.0.0.1:9401\n  tonnage watch --remote node7:9400\n\nExit status 4: no GPU that can be read is here."
    )]
    Watch(crate::commands::watch::WatchArgs),
    /// A command, unchanged: its estimate before, its memory recorded, peak against prediction after
    #[command(
        after_help = "Examples:\n  tonnage run -- python train.py\n  tonnage run --job job.toml -- torchrun --nproc-per-node 2 train.py\n  tonnage run --read-stderr -- python train.py\n\nExit status: the command's own (128 + the signal that ended it; 127 and 126 where it could not be started)."
    )]
    Run(crate::commands::run::RunArgs),
    /// What `tonnage run` has recorded
    #[command(
        after_help = "Examples:\n  tonnage history\n  tonnage history show 12\n  tonnage history compare 11 12\n  tonnage history export 12 --format csv\n  tonnage history record 12 >> runs.jsonl && tonnage validate runs.jsonl"
    )]
    History(crate::commands::history::HistoryArgs),
    /// What machine, driver and libraries say, in one block to paste
    #[command(after_help = "Examples:\n  tonnage doctor\n  tonnage doctor --from report.txt")]
    Doctor(crate::commands::doctor::DoctorArgs),
    /// The JSON schema of an output
    #[command(after_help = "Example:\n  tonnage schema footprint")]
    Schema(SchemaArgs),
}

/// `fit`
#[derive(Args, Debug)]
pub struct FitArgs {
    /// A job file; or a model file of llama.cpp, or the name of one that the program carries (qwen3-8b.Q4_K_M): flags of llama-server follow
    pub job: Option<String>,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The card that the question is about
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// How many of the card (llama.cpp)
    #[arg(long, value_name = "N")]
    pub gpu_count: Option<usize>,
    /// A card of this much usable memory: what can be trained on it
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Of the card's memory, what is free before the job starts (nvidia-smi)
    #[arg(long, value_name = "SIZE")]
    pub free: Option<Bytes>,
    /// Of the card's memory, what is to be left to others (a display)
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<Bytes>,
    /// The largest value of this setting on the card: batch, length, rank, context, concurrency, or any setting that counts
    #[arg(long, value_name = "SETTING")]
    pub largest: Option<String>,
    /// The step of --largest (default: 1; of lengths 64, of ranks 8)
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// With --largest and --gpus: speed and dollars a million tokens at the largest that fits
    #[arg(long, requires = "largest", requires = "gpus")]
    pub cost: bool,
    /// Ways to train: qlora, lora, full, full-mixed (default: all)
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub methods: Vec<String>,
    /// A batch for each of these lengths: A,B,... or START..END (doubling)
    #[arg(long, value_name = "A,B,...")]
    pub lengths: Option<String>,
    /// With --lengths: a rule to test, agi2:BATCHxLAST or tokens:N; `agi2` alone for an AGI2 file's own
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// With --lengths: samples of a step (default: the job's)
    #[arg(long, value_name = "N")]
    pub global_batch: Option<u64>,
    /// What somebody else says, shown beside the answer: of cards A,B,... in the order of --gpus; of models METHOD=A,B,...
    #[arg(long, value_name = "CLAIMS")]
    pub claims: Vec<String>,
    /// The cards for a job that is given by flags alone
    #[arg(long)]
    pub cards: bool,
    /// These cards only
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        help_heading = "Which cards"
    )]
    pub gpus: Vec<String>,
    #[command(flatten)]
    pub filter: crate::commands::gpus::GpuFilter,
    /// Every card, not only those around the limit
    #[arg(long)]
    pub all: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = TableFormat::Text)]
    pub format: TableFormat,
    /// A serving engine's command line
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `--format` of estimate and compare
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Md,
    Csv,
    Svg,
}

/// `--method`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// The simulation
    Tonnage,
    /// AGI2's own formula, for comparison
    Agi2,
}

/// `--levels`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelsProfile {
    /// AGI2's advice at 4, 8 and 12 GB
    Agi2,
}

/// `estimate`
#[derive(Args, Debug)]
pub struct EstimateArgs {
    /// A job: TOML, or one of the JSON and TOML files that other tools use; `-` reads it from standard input
    pub job: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The card that the question is about (`tonnage gpus` lists them)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Show what a line is made of (parameters, saved_activations, ...)
    #[arg(long, value_name = "LINE")]
    pub explain: Option<String>,
    /// Simulate edits and say what each saves (always done where the answer is not "fits")
    #[arg(long)]
    pub advice: bool,
    /// Leave uncertain settings at their expected values
    #[arg(long)]
    pub expected_only: bool,
    /// How the figures are made
    #[arg(long, value_enum, default_value_t = Method::Tonnage)]
    pub method: Method,
    /// Advice levels of another tool
    #[arg(long, value_enum)]
    pub levels: Option<LevelsProfile>,
    /// Print the job as a job file instead
    #[arg(long)]
    pub write_job: bool,
    /// How many of the card (llama.cpp; vLLM's is --tensor-parallel-size)
    #[arg(long, value_name = "N")]
    pub gpu_count: Option<usize>,
    /// A serving engine's command line: vllm serve MODEL ..., llama-server -m FILE ...
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `compare`
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Jobs; the first is what the others are compared with
    pub jobs: Vec<PathBuf>,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The card that the question is about; given as often as there are jobs, each job's own (train here, generate there)
    #[arg(long, value_name = "ID")]
    pub gpu: Vec<String>,
    /// One job for each value of a setting (of several: ONE+TWO=A,B); given twice, every combination
    #[arg(long, value_name = "SETTING=A,B,...")]
    pub sweep: Vec<String>,
    /// What somebody else says of each job, shown beside it
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    pub claims: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `--format` of tables
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    Text,
    Json,
    Md,
    Csv,
}

/// `--format` of validate, models and gpus
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Text,
    Json,
}

/// `validate`
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// Recorded runs, a JSON record a line
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
    /// In text, the rows with the largest errors
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub worst: usize,
}

/// `models`
#[derive(Args, Debug)]
pub struct ModelsArgs {
    /// Part of an id; a whole id, or a model's folder, for everything about it
    pub name: Option<String>,
    /// Branch, tag or commit of a model that is not built in
    #[arg(long)]
    pub revision: Option<String>,
    /// Also of a built-in model: compare the count with the safetensors headers (cache, or hub)
    #[arg(long)]
    pub headers: bool,
    /// Count every configuration's parameters and compare with the independent counts
    #[arg(long)]
    pub check: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

/// `schema`
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// Which one
    #[arg(value_enum, default_value_t = SchemaName::Footprint)]
    pub name: SchemaName,
}

/// The schemas that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaName {
    Audit,
    Doctor,
    DryRunEngine,
    Compare,
    Diff,
    DryRun,
    Explain,
    Fit,
    FitTraining,
    Footprint,
    Gpus,
    Instances,
    Measure,
    Models,
    Plan,
    History,
    Process,
    Recording,
    Replay,
    Run,
    Serving,
    Validate,
    Watch,
}

/// The settings that were given as flags, as (name, value).
#[derive(Clone, Debug, Default)]
pub struct SettingFlags {
    pub given: Vec<(String, String)>,
}

/// Other tools' flags (AGI2's command line) and what they are here.
const ALIASES: &[(&str, &str)] = &[
    ("model-embd", "model.config.n_embd"),
    ("model-layer", "model.config.n_layer"),
    ("model-head", "model.config.n_head"),
    ("model-positions", "model.config.n_positions"),
    ("vocab-size", "model.config.vocab_size"),
];

impl Args for SettingFlags {
    fn augment_args(mut cmd: clap::Command) -> clap::Command {
        for s in SETTINGS.iter().filter(|s| !s.flag.is_empty()) {
            let mut help = s.what.to_string();
            if let Kind::Choice(c) = s.kind {
                help += &format!(
                    " [{}]",
                    c.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
                );
            }
            if let Some(d) = s.default {
                help += &format!(" (default {d})");
            }
            let name = match s.kind {
                Kind::Count(_) | Kind::Number => "N",
                Kind::Bool => "true|false",
                Kind::Version => "VERSION",
                Kind::Texts => "A,B,...",
                _ => "X",
            };
            cmd = cmd.arg(
                Arg::new(s.key)
                    .long(s.flag)
                    .value_name(name)
                    .help(help)
                    .help_heading("The job"),
            );
        }
        for (flag, key) in ALIASES {
            let help = format!("{key} (AGI2's flag)");
            cmd = cmd.arg(
                Arg::new(*flag)
                    .long(*flag)
                    .value_name("N")
                    .help(help)
                    .help_heading("The job")
                    .hide_short_help(true),
            );
        }
        cmd = cmd.arg(
            Arg::new("mixed-precision")
                .long("mixed-precision")
                .action(ArgAction::SetTrue)
                .help("fp16 autocast (AGI2's flag)")
                .help_heading("The job")
                .hide_short_help(true),
        );
        cmd.arg(
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .help("any setting by its key, also model.config.FIELD")
                .help_heading("The job"),
        )
    }
    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        Self::augment_args(cmd)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(m: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for s in SETTINGS.iter().filter(|s| !s.flag.is_empty()) {
            if let Some(v) = m.get_one::<String>(s.key) {
                given.push((s.key.to_string(), v.clone()));
            }
        }
        for (flag, key) in ALIASES {
            if let Some(v) = m.get_one::<String>(flag) {
                given.push(((*key).to_string(), v.clone()));
            }
        }
        if m.get_flag("mixed-precision") {
            given.push(("train.precision".into(), "fp16-mixed".into()));
        }
        for pair in m.get_many::<String>("set").unwrap_or_default() {
            let Some((k, v)) = pair.split_once('=') else {
                return Err(clap::Error::raw(
                    clap::error::ErrorKind::ValueValidation,
                    format!("--set {pair}: KEY=VALUE is expected\n"),
                ));
            };
            given.push((k.trim().into(), v.trim().into()));
        }
        Ok(SettingFlags { given })
    }
    fn update_from_arg_matches(&mut self, m: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(m)?;
        Ok(())
    }
}
