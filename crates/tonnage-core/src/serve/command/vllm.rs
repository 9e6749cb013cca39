//! `vllm serve` (vLLM 0.33.0, `engine/arg_utils.py`, `entrypoints/common/cli_args.py`, `entrypoints/cli/serve.py`).

use super::{Command, Given, Group, Role, Syntax, Takes, count, quoted, unsupported, usage};
use crate::doc::Diagnostic;

/// What a command line says; absent where it does not.
#[derive(Clone, Debug, Default)]
pub struct Vllm {
    pub model: String,
    pub revision: Option<String>,
    pub max_model_len: Option<u64>,
    pub max_num_batched_tokens: Option<u64>,
    pub max_num_seqs: Option<u64>,
    pub gpu_memory_utilization: Option<f64>,
    pub tensor_parallel_size: Option<u64>,
    pub data_parallel_size: Option<u64>,
    pub expert_parallel: bool,
    pub block_size: Option<u64>,
    /// `--kv-cache-dtype` as it was given.
    pub kv_cache_dtype: Option<String>,
    pub enable_prefix_caching: Option<bool>,
    pub enforce_eager: bool,
    pub kv_cache_memory_bytes: Option<u64>,
    /// `--quantization` as it was given.
    pub quantization: Option<String>,
    pub language_model_only: bool,
    pub not_memory: Vec<String>,
    /// Other flags that decide about memory, for the launch command.
    pub kept: Vec<String>,
}

const SYNTAX: Syntax = Syntax {
    engine: "vllm serve",
    python: true,
    groups: &[
        Group(
            Role::Memory,
            Takes::Nothing,
            "--enforce-eager -ep|--enable-expert-parallel --enable-prefix-caching --language-model-only --enable-chunked-prefill \
             --async-scheduling",
        ),
        Group(
            Role::Memory,
            Takes::One,
            "--model --dtype --revision --max-model-len -q|--quantization --attention-backend -pp|--pipeline-parallel-size \
             -tp|--tensor-parallel-size -dp|--data-parallel-size --block-size --device-memory-utilization|--gpu-memory-utilization \
             --kv-cache-memory-bytes --kv-cache-dtype --cpu-offload-gb --max-num-batched-tokens --max-num-seqs",
        ),
        Group(
            Role::NotModelled,
            Takes::Many,
            "--kv-cache-dtype-skip-layers --cpu-offload-params --offload-params --cudagraph-capture-sizes --lora-modules",
        ),
        Group(
            Role::NotModelled,
            Takes::Nothing,
            "--disable-sliding-window --enable-prompt-embeds --enable-sleep-mode --enable-cumem-allocator \
             --enable-batch-sharded-sampling --enable-dbo --enable-eplb --kv-sharing-fast-prefill --use-replayssm --enable-lora \
             --fully-sharded-loras --disable-hybrid-kv-cache-manager",
        ),
        Group(
            Role::NotModelled,
            Takes::One,
            "--runner --convert --hf-config-path --quantization-config --hf-overrides --model-class-overrides --model-impl \
             -dcp|--decode-context-parallel-size -pcp|--prefill-context-parallel-size --ubatch-size --worker-cls \
             --worker-extension-cls --num-gpu-blocks-override --mamba-cache-dtype --mamba-ssm-cache-dtype --mamba-block-size \
             --mamba-cache-mode --replayssm-buffer-len --offload-backend --offload-group-size --offload-num-in-group \
             --mm-ipc-gpu-memory-gb --max-loras --max-lora-rank --max-cudagraph-capture-size -sc|--speculative-config --spec-method \
             --spec-model --spec-tokens -dc|--diffusion-config --kv-transfer-config -cc|--compilation-config -ac|--attention-config \
             --kernel-config --additional-config --optimization-level --performance-mode --config",
        ),
        Group(
            Role::Unrelated,
            Takes::Many,
            "--allowed-media-domains --served-model-name --sleep-preserve-parameter-names --logits-processors --numa-bind-nodes \
             --numa-bind-cpus --device-ids --lora-target-modules --collect-detailed-traces --api-key",
        ),
        Group(Role::Unrelated, Takes::Maybe, "--hf-token"),
        Group(
            Role::Unrelated,
            Takes::Nothing,
            "--trust-remote-code --allow-deprecated-quantization --enable-return-routed-experts --return-sampling-mask \
             --use-fp64-gumbel --enable-trace-replay --disable-cascade-attn --skip-tokenizer-init --sleep-mode-offload-cudagraph \
             --enable-nccl-comm-suspend --use-tqdm-on-load --enable-mamba-cache-stochastic-rounding --numa-bind --dcp-q-replicate \
             -dph|--data-parallel-hybrid-lb -dpe|--data-parallel-external-lb -dpm|--data-parallel-multi-port-external-lb \
             --enable-hc-sp --enable-ep-weight-filter --enable-shm-tensor-arena --enable-elastic-ep \
             --disable-nccl-for-dp-synchronization --ray-workers-use-nsight --disable-custom-all-reduce --enable-fault-tolerance \
             --swa-bounded-replay --enable-mamba-shared-prefix-checkpoint --enable-mm-embeds --mm-encoder-only \
             --interleave-mm-strings --skip-mm-profiling --mm-device-do-normalize --enable-tower-connector-lora \
             --specialize-active-lora --enable-mixed-moe-lora-format --enable-moe-shared-loras --kv-cache-metrics --cudagraph-metrics \
             --enable-layerwise-nvtx-tracing --enable-mfu-metrics --enable-logging-iteration-details --jit-monitor-verbose \
             --long-prefill-token-threshold-adaptive --disable-chunked-mm-input --scheduler-reserve-full-isl \
             --enable-flashinfer-autotune --monokernel --disable-log-stats --aggregate-engine-logging --fail-on-environ-validation \
             --enable-log-requests --trust-request-chat-template --trust-request-mm-kwargs --return-tokens-as-token-ids \
             --enable-auto-tool-choice --exclude-tools-when-tool-choice-none --enable-prompt-tokens-details \
             --enable-per-request-metrics --enable-server-load-tracking --enable-force-include-usage --enable-tokenizer-info-endpoint \
             --enable-log-outputs --enable-log-deltas --cohere-is-reasoning-model --log-error-stack --tokens-only --enable-scale-out \
             --disable-uvicorn-access-log --allow-credentials --enable-ssl-refresh --enable-request-id-headers --disable-fastapi-docs \
             --enable-offline-docs --enable-flash-late-interaction --headless --grpc",
        ),
        Group(
            Role::Unrelated,
            Takes::One,
            "--tokenizer --tokenizer-mode --seed --allowed-local-media-path --code-revision --tokenizer-revision --max-logprobs \
             --logprobs-mode --config-format --pooler-config --generation-config --override-generation-config --sleep-mode-backend \
             --io-processor-plugin --renderer-num-workers --load-format --download-dir --safetensors-load-strategy \
             --safetensors-prefetch-num-threads --safetensors-prefetch-block-size --model-loader-extra-config --ignore-patterns \
             --pt-load-map-location --mamba-backend --mamba-ssu-algorithm --mamba-cache-philox-rounds --reasoning-parser \
             --reasoning-parser-plugin --distributed-executor-backend --master-addr --master-port -n|--nnodes -r|--node-rank \
             --distributed-timeout-seconds --cpu-distributed-timeout-seconds --dcp-comm-backend --dcp-kv-cache-interleave-size \
             --cp-kv-cache-interleave-size -dpn|--data-parallel-rank -dpr|--data-parallel-start-rank -dpl|--data-parallel-size-local \
             -dpa|--data-parallel-address -dpp|--data-parallel-rpc-port -dpb|--data-parallel-backend --all2all-backend \
             --elastic-ep-max-dp-size --dbo-decode-token-threshold --dp-sync-interval --dbo-prefill-token-threshold --eplb-config \
             --expert-placement-strategy --max-parallel-loading-workers --fault-tolerance-config --prefix-caching-hash-algo \
             --prefix-cache-retention-interval --prefix-match-unit --kv-offloading-size --kv-offloading-backend \
             --offload-prefetch-step --limit-mm-per-prompt --media-io-kwargs --mm-processor-kwargs --mm-processor-cache-gb \
             --mm-processor-cache-type --mm-hasher-algorithm --mm-shm-cache-max-object-size-mb --mm-encoder-tp-mode \
             --mm-encoder-attn-backend --mm-encoder-attn-dtype --mm-encoder-fp8-scale-path --mm-encoder-fp8-scale-save-path \
             --mm-encoder-fp8-scale-save-margin --video-pruning-rate --video-pruning-method --mm-tensor-ipc --mm-processor-device \
             --lora-dtype --max-cpu-loras --default-mm-loras --max-lora-cls-labels --logging-config --log-level --log-config-file \
             --show-hidden-metrics-for-version --otlp-traces-endpoint --per-request-spec-decode-metrics --kv-cache-metrics-sample \
             --custom-histogram-buckets --jit-monitor-mode --max-num-scheduled-tokens --max-num-active-seqs --max-num-queued-reqs \
             --max-num-queued-tokens --long-prefill-token-threshold --scheduling-policy --scheduler-cls --watermark \
             --prefill-schedule-interval --stream-interval --ir-op-priority --moe-backend --linear-backend \
             --sparse-indexer-topk-backend --watermark-config --kv-events-config --ec-transfer-config --ec-manager-config \
             --engram-config --reasoning-config --structured-outputs-config --aux-output-config --profiler-config --watchdog-config \
             --weight-transfer-config --shutdown-timeout --gdn-prefill-backend --kda-prefill-backend --kda-decode-backend \
             --chat-template --chat-template-content-format --default-chat-template-kwargs --reasoning-effort-map --response-role \
             --tool-call-parser --tool-parser-plugin --tool-strict-level --tool-server --max-log-len --sse-keep-alive-interval \
             --cohere-format --anthropic-disabled-thinking-effort --fingerprint-mode --fingerprint-value --host --port --grpc-port \
             --data-parallel-supervisor-port --dp-supervisor-probe-interval-s --dp-supervisor-probe-timeout-s \
             --dp-supervisor-probe-failure-threshold --uds --uvicorn-log-level --disable-access-log-for-endpoints --allowed-origins \
             --allowed-methods --allowed-headers --ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-cert-reqs --ssl-ciphers \
             --root-path --middleware --h11-max-incomplete-event-size --h11-max-header-count -asc|--api-server-count",
        ),
    ],
};

/// Reads the words after `vllm serve`.
///
/// # Errors
/// See [`super::parse`].
pub fn parse(words: &[&str]) -> Result<Command, Diagnostic> {
    let (flags, others) = SYNTAX.scan(words)?;
    let mut v = Vllm::default();
    if let Some(extra) = others.get(1) {
        return Err(usage(
            format!("`{extra}` is no flag's value"),
            "vllm serve takes one model",
        ));
    }
    v.model = others.first().cloned().unwrap_or_default();
    for g in &flags {
        match g.role {
            Role::Memory => read(&mut v, g)?,
            _ => v.not_memory.push(g.line()),
        }
    }
    if v.model.is_empty() {
        return Err(usage("vllm serve: no model", "vllm serve Qwen/Qwen2.5-7B"));
    }
    Ok(Command::Vllm(Box::new(v)))
}

fn read(v: &mut Vllm, g: &Given) -> Result<(), Diagnostic> {
    let value = g.value();
    let at_least_one = || match human(&g.typed, value)? {
        0 => Err(usage(format!("{} 0", g.typed), "at least 1")),
        n => Ok(n),
    };
    let no = |what: String, instead: &str| Err(unsupported(format!("vLLM with {what}"), instead));
    match g.name {
        "--model" => v.model = value.into(),
        "--revision" => v.revision = Some(value.into()),
        "--max-model-len" => v.max_model_len = Some(at_least_one()?),
        "--max-num-batched-tokens" => v.max_num_batched_tokens = Some(at_least_one()?),
        "--max-num-seqs" => v.max_num_seqs = Some(at_least_one()?),
        "--gpu-memory-utilization" => {
            let x = value.parse::<f64>().ok().filter(|x| *x > 0.0 && *x <= 1.0);
            let bad = || {
                usage(
                    format!("{} {value}: not in (0, 1]", g.typed),
                    "for example 0.92",
                )
            };
            v.gpu_memory_utilization = Some(x.ok_or_else(bad)?);
        }
        "--tensor-parallel-size" => v.tensor_parallel_size = Some(at_least_one()?),
        "--data-parallel-size" => v.data_parallel_size = Some(at_least_one()?),
        "--pipeline-parallel-size" if at_least_one()? > 1 => {
            return no(format!("{} {value}", g.typed), "tensor parallelism is");
        }
        "--pipeline-parallel-size" => {}
        "--enable-expert-parallel" => v.expert_parallel = !g.negated,
        "--block-size" => v.block_size = Some(at_least_one()?),
        "--kv-cache-dtype" => match value {
            "auto" | "bfloat16" | "float16" | "fp8" | "fp8_e4m3" | "fp8_e5m2" => {
                v.kv_cache_dtype = Some(value.into());
            }
            _ => {
                return no(
                    format!("{} {value}", g.typed),
                    "auto, bfloat16, float16 and fp8 are",
                );
            }
        },
        "--enable-prefix-caching" => v.enable_prefix_caching = Some(!g.negated),
        "--enforce-eager" => v.enforce_eager = !g.negated,
        "--kv-cache-memory-bytes" => v.kv_cache_memory_bytes = Some(at_least_one()?),
        "--dtype" => match value {
            "auto" | "bfloat16" | "float16" | "half" => v.kept.push(g.line()),
            _ => return no(format!("{} {value}", g.typed), "16-bit types are"),
        },
        "--quantization" => v.quantization = Some(value.into()),
        "--async-scheduling" if g.negated => {
            return no(g.typed.clone(), "asynchronous scheduling (the default) is");
        }
        "--enable-chunked-prefill" if g.negated => {
            return no(g.typed.clone(), "chunked prefill (the default) is");
        }
        "--async-scheduling" | "--enable-chunked-prefill" => {}
        "--language-model-only" => v.language_model_only = !g.negated,
        "--cpu-offload-gb" => match value.parse::<f64>() {
            Ok(0.0) => {}
            _ => return no(format!("{} {value}", g.typed), "weights on the device are"),
        },
        "--attention-backend" => v.kept.push(g.line()),
        other => return no(other.into(), "others are"),
    }
    Ok(())
}

/// A whole number with vLLM's letters: `k` is 1,000 and `K` is 1,024 (`human_readable_int`).
pub(super) fn human(flag: &str, v: &str) -> Result<u64, Diagnostic> {
    let (digits, by) = match v.char_indices().last() {
        Some((i, c)) => {
            let by: Option<u64> = match c {
                'k' => Some(1_000),
                'm' => Some(1_000_000),
                'g' => Some(1_000_000_000),
                't' => Some(1_000_000_000_000),
                'K' => Some(1 << 10),
                'M' => Some(1 << 20),
                'G' => Some(1 << 30),
                'T' => Some(1 << 40),
                _ => None,
            };
            by.map_or((v, None), |b| (&v[..i], Some(b)))
        }
        None => (v, None),
    };
    let Some(by) = by else {
        return count(flag, v);
    };
    let bad = || {
        usage(
            format!("{flag} {v}: not a number of bytes or tokens"),
            "for example 8192 or 8K",
        )
    };
    // `1.5k` is allowed where it is a lower-case letter
    let x: f64 = digits.parse().map_err(|_| bad())?;
    let n = x * by as f64;
    if !(0.0..=1e18).contains(&n) {
        return Err(bad());
    }
    Ok(n as u64)
}

impl Vllm {
    /// The launch command with these values in place of what was given.
    pub fn launch(&self) -> String {
        let mut t = format!("vllm serve {}", quoted(&self.model));
        let mut flag = |name: &str, v: Option<String>| {
            if let Some(v) = v {
                t.push_str(&format!(" {name} {}", quoted(&v)));
            }
        };
        let n = |x: Option<u64>| x.map(|n| n.to_string());
        flag("--revision", self.revision.clone());
        flag("--tensor-parallel-size", n(self.tensor_parallel_size));
        flag("--data-parallel-size", n(self.data_parallel_size));
        flag("--max-model-len", n(self.max_model_len));
        flag("--max-num-seqs", n(self.max_num_seqs));
        flag("--max-num-batched-tokens", n(self.max_num_batched_tokens));
        flag(
            "--gpu-memory-utilization",
            self.gpu_memory_utilization.map(|x| x.to_string()),
        );
        flag("--kv-cache-memory-bytes", n(self.kv_cache_memory_bytes));
        flag("--kv-cache-dtype", self.kv_cache_dtype.clone());
        flag("--block-size", n(self.block_size));
        flag("--quantization", self.quantization.clone());
        for (name, on) in [
            ("--enforce-eager", self.enforce_eager),
            ("--enable-expert-parallel", self.expert_parallel),
            ("--language-model-only", self.language_model_only),
        ] {
            if on {
                t.push_str(&format!(" {name}"));
            }
        }
        match self.enable_prefix_caching {
            Some(true) => t.push_str(" --enable-prefix-caching"),
            Some(false) => t.push_str(" --no-enable-prefix-caching"),
            None => {}
        }
        for k in self.kept.iter().chain(&self.not_memory) {
            t.push(' ');
            t.push_str(k);
        }
        t
    }
}
