//! Block sizes and bytes against a second table: `GGML_QUANT_SIZES` of gguf-py (llama.cpp
//! gguf-py/gguf/constants.py), written out as numbers.
use tonnage_units::{GgmlError, GgmlType};

const TABLE: &str = "
F32 0 1 4, F16 1 1 2, Q4_0 2 32 18, Q4_1 3 32 20, Q5_0 6 32 22, Q5_1 7 32 24, Q8_0 8 32 34, Q8_1 9 32 36,
Q2_K 10 256 84, Q3_K 11 256 110, Q4_K 12 256 144, Q5_K 13 256 176, Q6_K 14 256 210, Q8_K 15 256 292,
IQ2_XXS 16 256 66, IQ2_XS 17 256 74, IQ3_XXS 18 256 98, IQ1_S 19 256 50, IQ4_NL 20 32 18, IQ3_S 21 256 110,
IQ2_S 22 256 82, IQ4_XS 23 256 136, I8 24 1 1, I16 25 1 2, I32 26 1 4, I64 27 1 8, F64 28 1 8, IQ1_M 29 256 56,
BF16 30 1 2, TQ1_0 34 256 54, TQ2_0 35 256 66, MXFP4 39 32 17, NVFP4 40 64 36, Q1_0 41 128 18, Q2_0 42 64 18";

#[test]
fn every_type() {
    let rows: Vec<_> = TABLE
        .split(',')
        .map(|row| row.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!(rows.len(), GgmlType::ALL.len());
    for row in rows {
        let t: GgmlType = row[0].parse().unwrap();
        let ours = [u64::from(t.id()), t.block_len(), t.block_bytes()];
        let theirs = [1, 2, 3].map(|i: usize| row[i].parse::<u64>().unwrap());
        assert_eq!(ours, theirs, "{t}");
        assert_eq!(t.is_quantized(), theirs[1] > 1);
    }
}

#[test]
fn tensors() {
    // Llama-2-7B: token_embd 4096 x 32000 in q4_K, output in q6_K
    assert_eq!(GgmlType::Q4K.bytes(4096, 32_000), Ok(73_728_000));
    assert_eq!(GgmlType::Q6K.bytes(4096, 32_000), Ok(107_520_000));
    assert_eq!(GgmlType::F32.bytes(4096, 1), Ok(16_384));
    assert_eq!(GgmlType::Q4K.bits_per_value(), 4.5);
    assert!(GgmlType::Q4K.bytes(1280, 4).is_ok());
    assert_eq!(
        GgmlType::Q4K.bytes(1152, 4),
        Err(GgmlError::Row {
            name: "q4_K",
            row: 1152,
            block: 256
        })
    );
    assert_eq!(
        GgmlType::F32.bytes(u64::MAX, 1),
        Err(GgmlError::Overflow {
            row: u64::MAX,
            rows: 1
        })
    );
    assert!(GgmlType::F32.bytes(1 << 62, 2).is_err());
}
