//! `sglang serve` and `python -m sglang.launch_server` (SGLang 0.5.23, `srt/arg_groups/fields/*.py`, `srt/server_args.py`).

use super::{Command, Given, Group, Role, Syntax, Takes, quoted, unsupported, usage};
use crate::doc::Diagnostic;

/// What a command line says; absent where it does not.
#[derive(Clone, Debug, Default)]
pub struct Sglang {
    pub model: String,
    pub revision: Option<String>,
    pub mem_fraction_static: Option<f64>,
    pub context_length: Option<u64>,
    pub max_total_tokens: Option<u64>,
    pub max_running_requests: Option<u64>,
    /// -1 (no chunks) is 0.
    pub chunked_prefill_size: Option<u64>,
    pub max_prefill_tokens: Option<u64>,
    pub page_size: Option<u64>,
    pub tp_size: Option<u64>,
    pub dp_size: Option<u64>,
    /// `--kv-cache-dtype` as it was given.
    pub kv_cache_dtype: Option<String>,
    pub decode_graphs_up_to: Option<u64>,
    pub prefill_graphs_up_to: Option<u64>,
    pub no_decode_graphs: bool,
    pub no_prefill_graphs: bool,
    pub not_memory: Vec<String>,
    /// The words after the program's name, as they are written again.
    pub kept: Vec<String>,
}

const SYNTAX: Syntax = Syntax {
    engine: "sglang serve",
    python: true,
    groups: &[
        Group(
            Role::Memory,
            Takes::Nothing,
            "--disable-cuda-graph --disable-prefill-cuda-graph --disable-decode-cuda-graph",
        ),
        Group(
            Role::Memory,
            Takes::One,
            "--model|--model-path --context-length --revision --dtype --quantization --kv-cache-dtype \
             --tp|--tensor-parallel-size|--tp-size --pp|--pipeline-parallel-size|--pp-size --dp|--data-parallel-size|--dp-size \
             --ep|--expert-parallel-size|--ep-size --mem-fraction-static --max-running-requests --max-total-tokens \
             --chunked-prefill-size --max-prefill-tokens --page-size --cuda-graph-max-bs-decode --cuda-graph-max-bs-prefill",
        ),
        Group(
            Role::NotModelled,
            Takes::Many,
            "--encoder-urls --encoder-register-urls --cuda-graph-bs-decode --cuda-graph-bs-prefill --lora-target-modules \
             --lora-paths",
        ),
        Group(
            Role::NotModelled,
            Takes::Nothing,
            "--disaggregation-enable-kv-checksum --disaggregation-decode-enable-radix-cache \
             --disaggregation-decode-enable-offload-kvcache --encoder-only --language-only --enable-adaptive-dispatch-to-encoder \
             --enable-pdmux --enable-memory-saver --enable-draft-weights-cpu-backup --enable-encoder-swa-bounded-replay \
             --enable-decoder-swa-bounded-replay --enable-dsa-fused-indexer --enable-mamba-cache-stochastic-rounding \
             --uses-mamba-radix-cache --enable-int8-mamba-checkpoint --disable-cuda-graph-padding --enable-profile-cuda-graph \
             --debug-cuda-graph --enable-torch-compile --enable-torch-compile-debug-mode --enable-symm-mem --enable-torch-symm-mem \
             --enable-eplb --enable-elastic-expert-backup --enable-two-batch-overlap --ple-offload-embedding --dllm-fdfo \
             --enable-lora --enable-lora-overlap-loading --experts-shared-outer-loras --lora-use-virtual-experts \
             --lora-strict-loading --enable-unified-memory --enable-hicache|--enable-hierarchical-cache --enable-hisparse \
             --mm-enable-dp-encoder --is-embedding --dcp-replicate-q-proj --enable-dsa-cache-layer-split --enable-kv-cache-sharding \
             --enable-dp-attention --enable-dp-attention-local-control-broadcast --enable-dynamic-chunking \
             ---swa-full-tokens-ratio-explicitly-set --disable-hybrid-swa-memory --prefill-only-disable-kv-cache \
             --speculative-dspark-align-verify-tokens-to-graph-tier --speculative-use-rejection-sampling \
             --speculative-use-block-verification --speculative-enable-w4a4-mxfp4-megamoe \
             ---speculative-draft-quantization-explicitly-set --speculative-adaptive --enable-flashinfer-allreduce-fusion",
        ),
        Group(
            Role::NotModelled,
            Takes::One,
            "--disaggregation-mode --disaggregation-decode-allocation-policy --disaggregation-transfer-backend \
             --disaggregation-bootstrap-port --disaggregation-ib-device --disaggregation-decode-retraction-backup \
             --disaggregation-decode-extra-slots --disaggregation-decode-polling-interval --encoder-transfer-backend \
             --encoder-bootstrap-port --pdmux-config-path --disaggregation-decode-host-receive-threshold --dsa-prefill-backend \
             --dsa-triton-union --dsa-decode-backend --dsa-paged-mqa-logits-backend --dsa-topk-backend --mamba-backend \
             --mamba-ssm-dtype --mamba-max-states-per-path --mamba-cache-philox-rounds --mamba-radix-cache-strategy \
             --mamba-track-interval --int8-mamba-ckpt-size --cuda-graph-config --cuda-graph-backend-decode \
             --cuda-graph-backend-prefill --cuda-graph-max-seq-len-prefill --cuda-graph-prefill-max-context --torch-compile-max-bs \
             --moe-a2a-backend --deepep-v2-mode --deepep-mode --deepep-dispatcher-output-dtype --flashinfer-a2a-dispatch-type \
             --ep-num-redundant-experts --eplb-algorithm --eplb-rebalance-num-iterations --eplb-rebalance-layers-per-chunk \
             --eplb-min-rebalancing-utilization-threshold --expert-distribution-recorder-mode \
             --expert-distribution-recorder-buffer-size --deepep-config --elastic-ep-backend --elastic-ep-scale-timeout \
             --kt-weight-path --kt-method --kt-cpuinfer --kt-threadpool-count --kt-num-gpu-experts \
             --kt-max-deferred-experts-per-token --cpu-offload-gb --offload-group-size --offload-num-in-group \
             --offload-prefetch-step --offload-mode --ple-offload-backend --ple-offload-dir --dllm-algorithm \
             --dllm-algorithm-config --max-lora-rank --max-loaded-loras --max-loras-per-batch --lora-eviction-policy --lora-backend \
             --max-lora-chunk-size --lora-drain-wait-threshold --hisparse-config --model-config-parser --json-model-override-args \
             --modelopt-quant --modelopt-checkpoint-restore-path --modelopt-checkpoint-save-path --modelopt-export-path \
             --decrypted-draft-config-file --decode-context-parallel-size|--dcp-size --attn-dp-size \
             --attention-context-parallel-size|--attn-cp-size --dcp-comm-backend --elastic-ep-initial-size --swa-full-tokens-ratio \
             --swa-prefix-tails --max-mamba-cache-size --mamba-full-memory-ratio --speculative-algorithm --uno-lora-path \
             --speculative-draft-model|--speculative-draft-model-path --speculative-boundary-reduction \
             --speculative-draft-model-revision --speculative-draft-load-format --speculative-num-steps --speculative-eagle-topk \
             --speculative-num-draft-tokens --speculative-dflash-block-size --speculative-domino-candidate-pool-size \
             --speculative-dspark-block-size --speculative-dspark-sps-table-path --speculative-dspark-confidence-sts-path \
             --speculative-accept-threshold-single --speculative-accept-threshold-acc --speculative-token-map \
             --speculative-attention-mode --speculative-draft-attention-backend --speculative-dsa-topk-backend \
             --speculative-draft-kv-cache-dtype --speculative-draft-window-size --speculative-draft-sink-size \
             --speculative-moe-runner-backend --speculative-moe-a2a-backend --speculative-draft-model-quantization \
             --speculative-adaptive-config --spec-trace-dir --speculative-ngram-min-bfs-breadth --speculative-ngram-max-bfs-breadth \
             --speculative-ngram-match-type --speculative-ngram-max-trie-depth --speculative-ngram-capacity \
             --speculative-ngram-external-corpus-path --speculative-ngram-external-sam-budget \
             --speculative-ngram-external-corpus-max-tokens --config",
        ),
        Group(
            Role::Unrelated,
            Takes::Many,
            "--numa-node --gc-threshold --decoupled-spec-connect-endpoints --return-aux-hidden-state-layer-ids \
             --flashinfer-autotune-skip-ops --allowed-media-domains --custom-weight-loader \
             --remote-instance-weight-loader-send-weights-group-ports --log-requests-target --uvicorn-access-log-exclude-prefixes \
             --tokenizer-metrics-allowed-custom-labels --bucket-time-to-first-token --bucket-inter-token-latency \
             --bucket-e2e-request-latency --prompt-tokens-buckets --generation-tokens-buckets --debug-tensor-dump-layers \
             --forward-hooks --prefill-delayer-forward-passes-buckets --prefill-delayer-wait-seconds-buckets --sidecar-args",
        ),
        Group(
            Role::Unrelated,
            Takes::Nothing,
            "--mlx-enable-sampling --sleep-on-idle --use-ray --enable-pd-role-switch --language-model-only --enable-fp32-lm-head \
             --enable-tf32-matmul --enable-weights-cpu-backup --enable-custom-logit-processor --enable-watermark \
             --watermark-default-enabled --watermark-enforce-all --enable-return-hidden-states --enable-return-aux-hidden-states \
             --enable-return-routed-experts --enable-return-indexer-topk --disable-outlines-disk-cache --enable-mis \
             --enable-lean-attention --enable-nvidia-megakernel --enable-amd-monokernel --disable-flashinfer-autotune \
             --triton-attention-reduce-in-fp32 --flashinfer-mla-disable-ragged --enable-fused-qk-norm-rope \
             --enable-precise-embedding-interpolation --enable-deepseek-v4-fp4-indexer --enable-linear-replayssm \
             --enable-linear-replayssm-spec --enable-cudagraph-gc --enable-layerwise-nvtx-marker --enable-nccl-nvls \
             --disable-custom-all-reduce --enable-mscclpp --enable-scattered-sconv --pre-warm-nccl --enable-quant-communications \
             --enable-flashinfer-allreduce-fusion --enforce-disable-flashinfer-allreduce-fusion --enable-aiter-allreduce-fusion \
             --disable-aiter-allreduce-fusion-in-prefill --disable-aiter-allreduce-fusion-in-decode \
             --enable-fused-moe-sum-all-reduce --enable-w4a4-mxfp4-megamoe --enable-waterfill \
             --disable-flashinfer-cutlass-moe-fp4-allgather --disable-shared-experts-fusion --enforce-shared-experts-fusion \
             --enable-paged-experts --enable-single-batch-overlap --enable-deterministic-inference \
             ---radix-eviction-policy-explicitly-set --disable-radix-cache --enable-page-major-kv-layout \
             --enable-session-radix-cache --enable-unified-cache-external-linker --enable-linker-mla-dedup --enable-lmcache \
             --enable-flexkv --enable-multimodal --enable-broadcast-mm-inputs-process --enable-prefix-mm-cache \
             --trust-mm-content-hashes --enable-mm-global-cache --disable-fast-image-processor --trust-remote-code \
             --quantize-and-serve --weight-loader-disable-mmap --weight-loader-prefetch-checkpoints \
             --weight-loader-drop-cache-after-load --remote-instance-weight-loader-start-seed-via-transfer-engine \
             --delete-ckpt-after-loading --checkpoint-engine-wait-weights-before-ready --log-requests --show-time-cost \
             --enable-metrics --enable-mfu-metrics --enable-metrics-for-all-schedulers --enable-request-time-stats-logging \
             --enable-forward-pass-metrics --enable-trace --export-metrics-to-file --enable-prefill-cp --enable-cp-tp-group-sharing \
             --enable-cp-decode-attn-tp --enable-dp-lm-head --enable-tp-lm-head-all-to-all --enable-attn-tp-input-scattered \
             --enable-shared-experts-attn-tp --enable-dense-mlp-attn-tp --enable-layernorm-sp --enable-megamoe-for-layernorm-sp \
             --disable-attn-tp-gather --enable-p2p-check --enable-priority-scheduling --disable-priority-preemption \
             --abort-on-priority-when-disabled --schedule-low-priority-values-first --disable-chunked-prefix-cache \
             --disable-overlap-schedule --enable-mixed-chunk --enable-prefill-delayer --enable-response-store --skip-tokenizer-init \
             --enable-http-worker-reuseport --smg-grpc-mode --grpc-mode --skip-server-warmup --enable-http2 --enable-ssl-refresh \
             --trust-request-chat-template --enable-cache-report --return-input-ids --return-output-ids --strip-thinking-cache \
             --enable-strict-thinking --allow-auto-truncate --stream-response-default-include-usage --incremental-streaming-output \
             --enable-streaming-session --constrained-json-disable-any-whitespace --enable-dynamic-batch-tokenizer \
             --enable-tokenizer-batch-encode --disable-tokenizer-batch-decode --enable-multi-layer-eagle",
        ),
        Group(
            Role::Unrelated,
            Takes::One,
            "--device --base-gpu-id --gpu-id-step --random-seed --watchdog-timeout --soft-watchdog-timeout \
             --decoupled-spec-bind-endpoint --decoupled-spec-rank --decoupled-spec-role --num-reserved-decode-tokens \
             --optimistic-prefill-attempts --sm-group-num --watermark-config --watermark-key --watermark-key-b \
             --watermark-context-window --watermark-mixing-probability --watermark-max-probability --return-hidden-states-mode \
             --aux-hidden-state-capture --sampling-mask-max-tokens --attention-backend --decode-attention-backend \
             --prefill-attention-backend --prefill-kv-cache-dequant-dtype --sampling-backend --grammar-backend \
             --fp8-gemm-runner-backend --fp4-gemm-runner-backend --bf16-gemm-backend --dsv4-prefill-backend --dsv4-attn-backend \
             --triton-attention-num-kv-splits --triton-attention-split-tile-size --linear-attn-backend --linear-attn-decode-backend \
             --linear-attn-prefill-backend --linear-attn-verify-backend --linear-replayssm-cache-len --boundary-reduction \
             --flashinfer-allreduce-fusion-backend --moe-runner-backend --flashinfer-mxfp4-moe-precision --fuseep-mode \
             --ep-dispatch-algorithm --init-expert-location --expert-balancedness-report-mode --mooncake-ib-device --ep-join-mode \
             --paged-experts-num-resident --tbo-token-distribution-threshold --rl-on-policy-target --radix-eviction-policy \
             --radix-eviction-policy-config --radix-cache-backend --hicache-host-memory-mode --hicache-ratio --hicache-size \
             --hicache-host-memory-fraction --hicache-write-policy --hicache-io-backend --hicache-mem-layout \
             --hicache-storage-backend --hicache-storage-prefetch-policy --hicache-storage-backend-extra-config \
             --hicache-storage-prefetch-retry-poll-interval --hicache-storage-prefetch-retry-max-attempts \
             --unified-cache-external-linker-backend --unified-cache-external-linker-config --lmcache-config-file \
             --flexkv-config-file --mm-attention-backend --mm-process-config --mm-processor-worker-num --mm-io-worker-num \
             --media-url-max-file-size-mb --mm-preprocess-cache-size-mb --limit-mm-data-per-request --image-processor-backend \
             --mm-global-cache-backend --mm-feature-transport --load-format --model-loader-extra-config --model-impl \
             --quantization-param-path --qsa-indexer-dtype --rl-quant-profile --startup-weight-load-mode \
             --weight-loader-prefetch-num-threads --remote-instance-weight-loader-seed-instance-ip \
             --remote-instance-weight-loader-seed-instance-service-port --remote-instance-weight-loader-backend \
             --engine-info-bootstrap-port --modelexpress-config --download-dir --model-checksum --decrypted-config-file \
             --weight-cache-mode --weight-cache-socket --weight-cache-timeout --log-level --log-level-http --log-requests-level \
             --log-requests-format --crash-dump-folder --smg-http-sidecar-port --load-snapshot-publish-interval \
             --tokenizer-metrics-custom-labels-header --extra-metric-labels --gc-warning-threshold-secs --decode-log-interval \
             --kv-events-config --load-publish-endpoint --forward-pass-metrics-worker-id --forward-pass-metrics-ipc-name \
             --trace-modules --otlp-traces-endpoint --otlp-service-name --export-metrics-to-file-dir --kv-canary \
             --kv-canary-sweep-interval --debug-tensor-dump-output-folder --debug-tensor-dump-input-file --msprobe-dump-config \
             --nccl-port --dist-timeout --nccl-init-addr|--dist-init-addr --gated-launch-port --nnodes --node-rank \
             --pp-max-micro-batch-size --pp-async-batch-depth --load-balance-method --moe-data-parallel-size|--moe-dp-size \
             --dwdp-size --cp-strategy --shared-experts-tp-size --moe-dense-tp-size --ep-join-rank-offset --max-ep-size \
             --max-queued-requests --prefill-decode-interval --prefill-decode-interval-min-bs --prefill-max-requests \
             --schedule-policy --default-priority-value --priority-scheduling-preemption-threshold --retraction-policy \
             --schedule-conservativeness --c128-page-size --num-continuous-decode-steps --scheduler-recv-interval \
             --prefill-delayer-max-delay-passes --prefill-delayer-token-usage-low-watermark --prefill-delayer-queue-min-ratio \
             --prefill-delayer-max-delay-ms --min-free-slots-delay --tokenizer-path --tokenizer-mode --tokenizer-backend \
             --tokenizer-worker-num --detokenizer-worker-num --host --port --fastapi-root-path --grpc-port \
             --grpc-response-timeout-secs --grpc-worker-threads --sidecar --warmups --http2-max-concurrent-streams \
             --http2-initial-connection-window-size --ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-keyfile-password --api-key \
             --admin-api-key --served-model-name --weight-version --chat-template --hf-chat-template-name --completion-template \
             --file-storage-path --default-chat-template-kwargs --tool-server --sampling-defaults --asr-max-buffer-seconds \
             --asr-max-concurrent-sessions --preferred-sampling-params --stream-interval --batch-notify-size \
             --constrained-json-whitespace-pattern --constrained-json-max-whitespace-cnt --dynamic-batch-tokenizer-batch-size \
             --dynamic-batch-tokenizer-batch-timeout --monokernel-backend --kv-canary-real-data",
        ),
    ],
};

/// Reads the words after `sglang serve`.
///
/// # Errors
/// See [`super::parse`].
pub fn parse(words: &[&str]) -> Result<Command, Diagnostic> {
    let (flags, others) = SYNTAX.scan(words)?;
    let mut s = Sglang::default();
    if let Some(extra) = others.get(1) {
        return Err(usage(
            format!("`{extra}` is no flag's value"),
            "sglang serve takes one model",
        ));
    }
    s.model = others.first().cloned().unwrap_or_default();
    for g in &flags {
        match g.role {
            Role::Memory => {
                read(&mut s, g)?;
                if g.name != "--model-path" {
                    s.kept.push(g.line());
                }
            }
            _ => s.not_memory.push(g.line()),
        }
    }
    if s.model.is_empty() {
        return Err(usage(
            "sglang serve: no model",
            "sglang serve --model-path Qwen/Qwen2.5-7B",
        ));
    }
    Ok(Command::Sglang(Box::new(s)))
}

fn read(s: &mut Sglang, g: &Given) -> Result<(), Diagnostic> {
    let value = g.value();
    let at_least_one = || match super::vllm::human(&g.typed, value)? {
        0 => Err(usage(format!("{} 0", g.typed), "at least 1")),
        n if n > 1 << 40 => Err(usage(format!("{} {value}", g.typed), "not so many")),
        n => Ok(n),
    };
    let no = |what: String, instead: &str| Err(unsupported(format!("SGLang with {what}"), instead));
    match g.name {
        "--model-path" => s.model = value.into(),
        "--revision" => s.revision = Some(value.into()),
        "--mem-fraction-static" => {
            let x = value.parse::<f64>().ok().filter(|x| *x > 0.0 && *x < 1.0);
            let bad = || {
                usage(
                    format!("{} {value}: not between 0 and 1", g.typed),
                    "for example 0.88",
                )
            };
            s.mem_fraction_static = Some(x.ok_or_else(bad)?);
        }
        "--context-length" => s.context_length = Some(at_least_one()?),
        "--max-total-tokens" => s.max_total_tokens = Some(at_least_one()?),
        "--max-running-requests" => s.max_running_requests = Some(at_least_one()?),
        "--chunked-prefill-size" if value == "-1" => s.chunked_prefill_size = Some(0),
        "--chunked-prefill-size" => s.chunked_prefill_size = Some(at_least_one()?),
        "--max-prefill-tokens" => s.max_prefill_tokens = Some(at_least_one()?),
        "--page-size" => s.page_size = Some(at_least_one()?),
        "--tp-size" => s.tp_size = Some(at_least_one()?),
        "--dp-size" => s.dp_size = Some(at_least_one()?),
        "--pp-size" | "--ep-size" if at_least_one()? > 1 => {
            return no(format!("{} {value}", g.typed), "tensor parallelism is");
        }
        "--cuda-graph-max-bs-decode" => s.decode_graphs_up_to = Some(at_least_one()?),
        "--cuda-graph-max-bs-prefill" => s.prefill_graphs_up_to = Some(at_least_one()?),
        "--disable-cuda-graph" => {
            s.no_decode_graphs = true;
            s.no_prefill_graphs = true;
        }
        "--disable-decode-cuda-graph" => s.no_decode_graphs = true,
        "--disable-prefill-cuda-graph" => s.no_prefill_graphs = true,
        "--kv-cache-dtype" => match value {
            "auto" | "bf16" | "bfloat16" | "fp8_e4m3" | "fp8_e5m2" => {
                s.kv_cache_dtype = Some(value.into());
            }
            _ => return no(format!("{} {value}", g.typed), "auto and fp8_e4m3 are"),
        },
        "--dtype" if !matches!(value, "auto" | "half" | "float16" | "bfloat16") => {
            return no(format!("{} {value}", g.typed), "16 bits are");
        }
        "--quantization" => return no(format!("{} {value}", g.typed), "16-bit weights are"),
        _ => {}
    }
    Ok(())
}

impl Sglang {
    /// The launch command.
    pub fn launch(&self) -> String {
        let mut t = format!("sglang serve --model-path {}", quoted(&self.model));
        for k in self.kept.iter().chain(&self.not_memory) {
            t.push(' ');
            t.push_str(k);
        }
        t
    }
}
