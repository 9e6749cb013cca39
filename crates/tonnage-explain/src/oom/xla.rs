//! XLA: on GPUs (xla/service/gpu/gpu_executable.cc, xla/pjrt, stream_executor/cuda/cuda_driver.cc, tsl/framework/bfc_allocator.cc) and on
//! TPUs (texts of libtpu; openxla.org/xla/errors).

use super::text::{after, amount, amount_after, bytes, floor, integer};
use super::{Framework, Message, Parsed, Site};

fn whose(site: &Site) -> Framework {
    let here = |w: &str| site.context.contains(w);
    if here("tensorflow") || site.text[..floor(site.text, 600)].contains("[Op:") {
        Framework::TensorFlow
    } else {
        Framework::Jax
    }
}

/// `Out of memory while trying to allocate N bytes.`, with the table of the buffer assignment where it follows.
pub fn while_trying(site: &Site) -> Parsed {
    let context = super::text::flatten(site.context);
    let near = &context[floor(&context, context.len().saturating_sub(60))..];
    if !near.to_ascii_lowercase().contains("out of memory") && !near.contains("RESOURCE_EXHAUSTED")
    {
        return None;
    }
    let s = site.flat(6000);
    let (tried, r) = amount(after(&s, "trying to allocate ")?)?;
    let mut m = Message::new(whose(site), "xla-gpu");
    // newer texts show an amount with its exact bytes beside it
    let exact = r.trim_start().strip_prefix('(').and_then(amount);
    m.set_amount("tried_bytes", Some(exact.map_or(tried, |e| e.0)));
    let mut used = 18;
    if let Some(i) = s.find("BufferAssignment") {
        m.format = "xla-gpu with BufferAssignment";
        let t = &s[i..];
        for (key, word) in [
            ("xla_parameter_bytes", "parameter allocation: "),
            ("xla_constant_bytes", "constant allocation: "),
            ("xla_live_out_bytes", "maybe_live_out allocation: "),
            ("xla_temp_bytes", "preallocated temp allocation: "),
            ("xla_total_bytes", "total allocation: "),
            ("xla_fragmentation_bytes", "total fragmentation: "),
        ] {
            m.set_amount(key, amount_after(t, word));
        }
        used = site.text.find("total fragmentation").unwrap_or(used);
    }
    Some((m, used))
}

/// `Can't reduce memory use below 2.58GiB by rematerialization; only reduced to 31.49GiB (33811139404 bytes)`: a warning of the compiler.
pub fn remat(site: &Site) -> Parsed {
    let s = site.flat(300);
    let (shown, r) = amount(after(&s, "only reduced to ")?)?;
    let mut m = Message::new(Framework::Jax, "xla rematerialization warning");
    m.fatal = false;
    let exact = r.trim_start().strip_prefix('(').and_then(bytes);
    m.set_amount(
        "xla_remat_reached_bytes",
        Some(exact.map_or(shown, |e| e.0)),
    );
    m.set_amount(
        "xla_remat_wanted_bytes",
        amount_after(site.before, "memory use below "),
    );
    Some((m, 20))
}

/// `Failed to allocate request for 1.2GiB (1288490188B) on device ordinal 0`.
pub fn request(site: &Site) -> Parsed {
    let s = site.flat(300);
    let (shown, r) = amount(after(&s, "request for ")?)?;
    let mut m = Message::new(whose(site), "xla-gpu request");
    let exact = r.trim_start().strip_prefix('(').and_then(bytes);
    m.set_amount("tried_bytes", Some(exact.map_or(shown, |e| e.0)));
    m.set_integer(
        "gpu_index",
        after(&s, "device ordinal ").and_then(integer).map(|n| n.0),
    );
    Some((m, 20))
}

/// `failed to allocate 18.75G (20132659200 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY`, `failed to alloc N bytes on host`. The framework
/// tries smaller amounts after it.
pub fn driver(site: &Site) -> Parsed {
    let s = site.flat(300);
    let r = after(&s, "failed to alloc")?;
    let (shown, r) = bytes(r.strip_prefix("ate").unwrap_or(r))?;
    if !r.contains("OUT_OF_MEMORY") && !r.contains("out of memory") {
        return None;
    }
    let mut m = Message::new(whose(site), "xla driver");
    m.fatal = false;
    if r.contains("on host") {
        m.set("kind", "host");
    }
    let exact = r.trim_start().strip_prefix('(').and_then(bytes);
    m.set_amount("tried_bytes", Some(exact.map_or(shown, |e| e.0)));
    let used = site.text.find("OUT_OF_MEMORY").map_or(20, |i| i + 14);
    Some((m, used))
}

/// TPU: the compiler's program does not fit a memory space.
pub fn tpu_space(site: &Site) -> Parsed {
    let context = super::text::flatten(site.context);
    if !context.ends_with("Ran out of memory") {
        return None;
    }
    let s = site.flat(1500);
    let space = after(&s, "in memory space ")?;
    let space = &space[..space
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(space.len())];
    let mut m = Message::new(Framework::XlaTpu, "xla-tpu");
    m.format = match space {
        "hbm" => "xla-tpu hbm",
        "vmem" => "xla-tpu vmem",
        "smem" => "xla-tpu smem",
        _ => "xla-tpu",
    };
    m.set("memory_space", space);
    if let Some((used, r)) = after(&s, "Used ").and_then(amount) {
        m.set_amount("used_bytes", Some(used));
        m.set_amount(
            "total_bytes",
            r.strip_prefix(" of ").and_then(amount).map(|a| a.0),
        );
    }
    m.set_amount("exceeded_bytes", amount_after(&s, "capacity by "));
    if let Some(r) = after(&s, " usage >= ") {
        for (key, word) in [
            ("reserved_bytes", " reserved "),
            ("program_bytes", " program "),
            ("arguments_bytes", " arguments "),
            ("global_bytes", " global "),
            ("scoped_bytes", " scoped "),
            ("hlo_temp_bytes", " HLO temp "),
        ] {
            m.set_amount(key, amount_after(r, word));
        }
    }
    Some((m, 15))
}

/// TPU at run time: `Attempting to allocate 50.00M. That was not possible. There are 27.86M free.; (0x0x0_HBM0)`, `Attempting to reserve
/// 29.49G at the bottom of memory. That was not possible. There are 147.64M free, 0B reserved, and 147.64M reservable.`
pub fn tpu_allocate(site: &Site) -> Parsed {
    let s = site.flat(600);
    let reserve = s.starts_with("Attempting to reserve");
    let (tried, r) = amount(s.strip_prefix("Attempting to ")?.split_once(' ')?.1)?;
    let r = after(r, "That was not possible. There are ")?;
    let mut m = Message::new(Framework::XlaTpu, "xla-tpu allocate");
    if reserve {
        m.format = "xla-tpu reserve";
    }
    m.set_amount("tried_bytes", Some(tried));
    m.set_amount("free_bytes", amount(r).map(|a| a.0));
    m.set_amount("reserved_bytes", super::text::amount_before(r, " reserved"));
    m.set_amount(
        "reservable_bytes",
        super::text::amount_before(r, " reservable"),
    );
    m.set_amount(
        "largest_free_bytes",
        amount_after(r, "region of free memory is "),
    );
    m.set_integer("gpu_index", after(r, "_HBM").and_then(integer).map(|n| n.0));
    Some((m, 20))
}
