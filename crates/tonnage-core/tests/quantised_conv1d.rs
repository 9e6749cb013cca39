//! GPT-2's layers are transformers' `Conv1D`; bitsandbytes packs them as it packs `nn.Linear`.
//!
//! Recorded: transformers 5.17.0, bitsandbytes 0.50.2, torch 2.11 on the null device; GPT2Config(n_layer=2, n_embd=256, n_head=4,
//! n_positions=128, vocab_size=1000) in bf16, from_pretrained(device_map), one forward call of 1 x 16 tokens without gradients.

use tonnage_core::footprint::{Options, estimate};
use tonnage_core::import;

/// Allocated after loading. The highest while loading is not compared: `from_pretrained` loads by sorted names, which is not modelled.
fn loaded(quant: &str) -> u64 {
    let job = format!(
        "[model]\ntype = \"gpt2\"\nconfig = {{ n_layer = 2, n_embd = 256, n_head = 4, n_positions = 128, vocab_size = 1000 }}\ndtype = \"bf16\"\n\
         [work]\nkind = \"forward\"\n[train]\nmicro_batch_size = 1\nseq_len = 16\nprecision = \"bf16\"\nloading = \"device_map\"\n\
         [quant]\n{quant}\n"
    );
    let options = Options {
        expected_only: true,
        ..Options::default()
    };
    let e = estimate(&import::read("gpt2.toml", &job).unwrap(), &options).unwrap();
    let mut loading = e.analysis.intervals.iter().filter(|i| i.mark.step < 0);
    loading.next_back().unwrap().end.allocated
}

/// The recorder's own input ids, one block, are there before its first figure.
const IDS: u64 = 512;

#[test]
fn conv1d_is_packed_in_four_bits() {
    assert_eq!(loaded("format = \"nf4\"\ndouble = false"), 1_481_216 - IDS);
}

#[test]
fn conv1d_is_packed_in_eight_bits() {
    assert_eq!(loaded("format = \"int8\""), 2_183_680 - IDS);
}
