//! TensorFlow: core/framework/op_kernel, core/common_runtime/bfc_allocator.cc (tsl/framework since 2.11).

use super::text::{after, amount, amount_after, bytes, integer};
use super::{Framework, Message, Parsed, Site};

/// Bytes of an element by TensorFlow's name of the type.
fn size(dtype: &str) -> Option<i64> {
    Some(match dtype {
        "float" | "float32" | "int32" | "uint32" | "qint32" => 4,
        "double" | "float64" | "int64" | "uint64" | "complex64" => 8,
        "half" | "float16" | "bfloat16" | "int16" | "uint16" | "qint16" | "quint16" => 2,
        "bool" | "int8" | "uint8" | "qint8" | "quint8" | "float8_e4m3fn" | "float8_e5m2" => 1,
        "complex128" => 16,
        _ => return None,
    })
}

/// `OOM when allocating tensor with shape[500,17,17,4032] and type float on /job:.../device:GPU:0 by allocator GPU_0_bfc`.
pub fn tensor(site: &Site) -> Parsed {
    let s = site.flat(600);
    let mut m = Message::new(Framework::TensorFlow, "tf tensor");
    let r = after(&s, "shape[")?;
    let inside = &r[..r.find(']')?];
    let shape: Option<Vec<i64>> = inside
        .split(',')
        .filter(|w| !w.trim().is_empty())
        .map(|w| w.trim().parse().ok())
        .collect();
    let shape = shape?;
    let dtype =
        after(r, "type ").map(|t| t.split([' ', '.', ',']).next().unwrap_or("").to_string());
    if let Some(d) = &dtype {
        m.set("dtype", d.as_str());
        if let Some(n) = size(d) {
            let all = shape.iter().try_fold(n, |a, b| a.checked_mul(*b));
            m.set_integer("tried_bytes", all);
        }
    }
    m.set("shape", shape);
    let device = ["device:GPU:", "/gpu:", "/GPU:", "device:gpu:"];
    m.set_integer(
        "gpu_index",
        device
            .iter()
            .find_map(|d| after(r, d).and_then(integer))
            .map(|n| n.0),
    );
    if let Some(a) = after(r, "by allocator ") {
        let name = a
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .next()
            .unwrap_or("");
        m.set("allocator", name);
    }
    Some((m, 20))
}

/// `Allocator (GPU_0_bfc) ran out of memory trying to allocate 1.25GiB (rounded to 1342177280)requested by op ...`; JAX has the same allocator.
pub fn bfc(site: &Site) -> Parsed {
    let s = site.flat(2500);
    let (tried, r) = amount(after(&s, "trying to allocate ")?)?;
    let jax = ["xla/tsl", "xla/service", "xla/pjrt", "external/xla"];
    let mut m = Message::new(
        if jax.iter().any(|w| site.before.contains(w)) {
            Framework::Jax
        } else {
            Framework::TensorFlow
        },
        "tf bfc",
    );
    m.set_amount("tried_bytes", Some(tried));
    let near = &r[..super::text::floor(r, 400)];
    m.set_integer(
        "rounded_bytes",
        after(near, "(rounded to ").and_then(integer).map(|n| n.0),
    );
    m.set_integer(
        "freed_by_count",
        after(near, "freed_by_count=")
            .and_then(integer)
            .map(|n| n.0),
    );
    if near.contains("this is not a failure") {
        m.fatal = false;
        m.format = "tf bfc warning";
    }
    if let Some(i) = site.before.rfind("llocator (") {
        let name = &site.before[i + 10..];
        let name = &name[..name.find(')').unwrap_or(name.len())];
        m.set("allocator", name);
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        m.set_integer("gpu_index", digits.parse().ok());
    }
    // the allocator's statistics, where they follow
    if let Some(t) = after(r, "Stats:") {
        for (key, word) in [
            ("limit_bytes", "Limit:"),
            ("in_use_bytes", "InUse:"),
            ("max_in_use_bytes", "MaxInUse:"),
        ] {
            m.set_amount(key, after(t, word).and_then(bytes).map(|a| a.0));
        }
    }
    m.set_amount("fragmented_bytes", amount_after(r, "largest free chunk "));
    Some((m, 36))
}
