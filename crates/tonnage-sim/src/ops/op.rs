//! Names of the operators that allocate, for attribution.

/// An operator, packed into the low 12 bits of an event's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u16);

macro_rules! ops {
    ($($id:ident $name:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u16)]
        enum Index { $($id,)* }
        #[allow(missing_docs)]
        impl OpId {
            $(pub const $id: OpId = OpId(Index::$id as u16);)*
        }
        const NAMES: &[&str] = &[$($name,)*];
    };
}

ops! {
    NONE "none",
    WORKSPACE "cublas_workspace",
    LOAD "load",
    INPUT "input",
    OPTIMIZER "optimizer",
    FOREACH "_foreach",
    UPDATE_SCALE "_amp_update_scale_",
    ACCUMULATE "accumulate_grad",
    ONES_LIKE "ones_like",
    CLONE "clone",
    TO_COPY "_to_copy",
    CHECKPOINT "checkpoint",
    ADD "add",
    SUB "sub",
    MUL "mul",
    DIV "div",
    NEG "neg",
    POW "pow",
    RSQRT "rsqrt",
    SQRT "sqrt",
    EXP "exp",
    LOG "log",
    COS "cos",
    SIN "sin",
    SGN "sgn",
    TANH "tanh",
    TANH_BACKWARD "tanh_backward",
    SIGMOID "sigmoid",
    SIGMOID_BACKWARD "sigmoid_backward",
    SILU "silu",
    SILU_BACKWARD "silu_backward",
    GELU "gelu",
    GELU_BACKWARD "gelu_backward",
    RELU "relu",
    THRESHOLD_BACKWARD "threshold_backward",
    SOFTPLUS "softplus",
    SOFTPLUS_BACKWARD "softplus_backward",
    RECIPROCAL "reciprocal",
    ABS "abs",
    CLAMP "clamp",
    DROPOUT "native_dropout",
    DROPOUT_BACKWARD "native_dropout_backward",
    MASKED_FILL "masked_fill",
    WHERE "where",
    SCALAR_TENSOR "scalar_tensor",
    LERP "lerp",
    ADDCMUL "addcmul",
    ADDCDIV "addcdiv",
    NE "ne",
    EQ "eq",
    COMPARE "compare",
    BITWISE "bitwise",
    MAX "max",
    ARGMAX "argmax",
    ALL "all",
    ANY "any",
    REMAINDER "remainder",
    SUM "sum",
    MEAN "mean",
    CUMSUM "cumsum",
    NORM "linalg_vector_norm",
    VIEW "view",
    TRANSPOSE "transpose",
    PERMUTE "permute",
    SLICE "slice",
    SLICE_BACKWARD "slice_backward",
    SELECT "select",
    SELECT_BACKWARD "select_backward",
    SPLIT "split",
    UNBIND "unbind",
    EXPAND "expand",
    UNSQUEEZE "unsqueeze",
    SQUEEZE "squeeze",
    CAT "cat",
    STACK "stack",
    PAD "constant_pad_nd",
    ROLL "roll",
    ARANGE "arange",
    FULL "full",
    EYE "eye",
    ZEROS "zeros",
    ZEROS_LIKE "zeros_like",
    ONE_HOT "one_hot",
    MM "mm",
    ADDMM "addmm",
    BMM "bmm",
    BADDBMM "baddbmm",
    GROUPED_MM "_grouped_mm",
    GEMM_4BIT "gemm_4bit",
    DEQUANTIZE "dequantize",
    INT8_QUANT "int8_vectorwise_quant",
    INT8_MM "int8_scaled_mm",
    EMBEDDING "embedding",
    EMBEDDING_BACKWARD "embedding_dense_backward",
    LAYER_NORM "native_layer_norm",
    LAYER_NORM_BACKWARD "native_layer_norm_backward",
    RMS_NORM "_fused_rms_norm",
    RMS_NORM_BACKWARD "_fused_rms_norm_backward",
    BATCH_NORM "native_batch_norm",
    BATCH_NORM_BACKWARD "native_batch_norm_backward",
    SOFTMAX "_softmax",
    SOFTMAX_BACKWARD "_softmax_backward_data",
    LOG_SOFTMAX "_log_softmax",
    LOG_SOFTMAX_BACKWARD "_log_softmax_backward_data",
    NLL_LOSS "nll_loss_forward",
    NLL_LOSS_BACKWARD "nll_loss_backward",
    SDPA_FLASH "_scaled_dot_product_flash_attention",
    SDPA_FLASH_BACKWARD "_scaled_dot_product_flash_attention_backward",
    SDPA_EFFICIENT "_scaled_dot_product_efficient_attention",
    SDPA_EFFICIENT_BACKWARD "_scaled_dot_product_efficient_attention_backward",
    SDPA_CUDNN "_scaled_dot_product_cudnn_attention",
    SDPA_CUDNN_BACKWARD "_scaled_dot_product_cudnn_attention_backward",
    FLASH_ATTN "flash_attn",
    FLASH_ATTN_BACKWARD "flash_attn_backward",
    SDPA_MATH "_scaled_dot_product_attention_math",
    CONVOLUTION "convolution",
    CONVOLUTION_BACKWARD "convolution_backward",
    MAX_POOL "max_pool2d_with_indices",
    MAX_POOL_BACKWARD "max_pool2d_with_indices_backward",
    AVG_POOL "avg_pool2d",
    AVG_POOL_BACKWARD "avg_pool2d_backward",
    TOPK "topk",
    SORT "sort",
    INDEX "index",
    INDEX_ADD "index_add",
    GATHER "gather",
    HISTC "histc",
    SCATTER "scatter",
}

impl OpId {
    /// The operator's name in the framework (`aten::` left out); "?" for a number that is no operator.
    pub fn name(self) -> &'static str {
        NAMES.get(self.0 as usize).copied().unwrap_or("?")
    }
    /// Every operator, in order of number.
    pub fn all() -> impl Iterator<Item = OpId> {
        (0..NAMES.len() as u16).map(OpId)
    }
}

impl std::fmt::Display for OpId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_match_their_constants() {
        let names: std::collections::BTreeSet<_> = OpId::all().map(OpId::name).collect();
        assert_eq!(names.len(), NAMES.len());
        assert!(
            NAMES.len() < 1 << 12,
            "an owner packs the operator into 12 bits"
        );
        assert_eq!(OpId::NONE, OpId::default());
        assert_eq!(
            OpId::SDPA_FLASH.name(),
            "_scaled_dot_product_flash_attention"
        );
        assert_eq!(OpId::SCATTER.name(), *NAMES.last().unwrap());
    }
}
