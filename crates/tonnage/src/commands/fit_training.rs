//! `tonnage fit` of a training job, a memory or a model.

use super::gpus::GpuFilter;
use crate::Status;
use crate::args::{FitArgs, TableFormat};
use crate::jobs;
use crate::output::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonnage_catalog::{Gpu, LookupError};
use tonnage_core::verdict::Device;
use tonnage_core::{Diagnostic, Job};
use tonnage_plan::cards::{
    self, Class, Here, Row, have, largest, need, over, sizes, sizes_text, text,
};
use tonnage_plan::schedule;
use tonnage_report::json;

type Failed = (Vec<Diagnostic>, Status);

fn usage(m: &str, help: &str) -> Failed {
    (
        vec![Diagnostic::error("missing", m).help(help)],
        Status::Usage,
    )
}

fn failed(bad: Vec<Diagnostic>) -> Failed {
    let s = jobs::status_of(&bad);
    (bad, s)
}

pub fn run(a: &FitArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok((text, any)) => {
            out.print(&text);
            if any { Status::Ok } else { Status::DoesNotFit }
        }
        Err((bad, status)) => {
            out.complain(&bad);
            status
        }
    }
}

/// Text and whether anything fits.
fn answer(a: &FitArgs, out: &Output) -> Result<(String, bool), Failed> {
    let about_a_job = a.job.is_some() || a.largest.is_some() || a.lengths.is_some() || a.cards;
    if !about_a_job {
        let named = a
            .settings
            .given
            .iter()
            .any(|(k, _)| k == "model.id" || k == "model.path");
        return match (named, a.memory.is_some() || a.gpu.is_some()) {
            (_, true) => memory(a, out),
            (true, false) => model(a, out),
            (false, false) => Err(usage(
                "no job, model or memory",
                "tonnage fit JOB; tonnage fit --memory 12GiB; tonnage fit --model Qwen/Qwen2.5-7B",
            )),
        };
    }
    let path = a.job.as_deref().map(std::path::Path::new);
    let job = jobs::load(path, &a.settings)?;
    if let Some(l) = &a.lengths {
        return lengths(a, out, &job, l);
    }
    match (&a.largest, &a.gpu, a.memory) {
        (Some(setting), _, _) => knob(a, out, &job, setting),
        (None, None, None) => over_cards(a, out, &job),
        (None, _, _) => one_card(a, out, &job),
    }
}

fn here(a: &FitArgs) -> Here {
    Here {
        free: a.free.map(|b| b.0),
        reserve: a.reserve.map_or(0, |b| b.0),
    }
}

/// The card of the question: `--gpu`, or a memory with the kernels of `--gpu` or the default.
fn card(a: &FitArgs, out: &Output) -> Result<Device, Failed> {
    let name = match (&a.gpu, a.memory) {
        (Some(g), _) => g.as_str(),
        (None, Some(_)) => tonnage_core::job::DEFAULT_GPU,
        (None, None) => {
            return Err(usage(
                "--gpu ID or --memory SIZE is needed",
                "tonnage gpus lists them",
            ));
        }
    };
    let gpu = find(name, out)?;
    match a.memory {
        Some(m) => cards::of_memory(&gpu, m.0, here(a)).map_err(failed),
        None => {
            let d = Device::of(gpu).map_err(|e| {
                (
                    vec![Diagnostic::error("unsupported", e.to_string())],
                    Status::Unavailable,
                )
            })?;
            Ok(here(a).on(d))
        }
    }
}

fn find(name: &str, out: &Output) -> Result<Gpu, Failed> {
    out.catalogs.gpus.find(name).map_err(|e| {
        let d = Diagnostic::error("unknown-gpu", e.to_string());
        (vec![d.help("`tonnage gpus` lists them")], Status::BadInput)
    })
}

/// The cards that are asked about: `--gpus`, else all that pass the filters.
fn chosen(a: &FitArgs, out: &Output) -> Result<Vec<Gpu>, Failed> {
    let keep = GpuFilter::test(&a.filter).map_err(|d| (vec![d], Status::Usage))?;
    let mut list = vec![];
    if a.gpus.is_empty() {
        list.extend(out.catalogs.gpus.iter());
    }
    for name in &a.gpus {
        match out.catalogs.gpus.find(name) {
            Ok(g) => list.push(g),
            // every card of that name is a card for the job
            Err(LookupError::Ambiguous { candidates, .. }) => list.extend(
                candidates
                    .iter()
                    .filter_map(|c| out.catalogs.gpus.find(c).ok()),
            ),
            Err(_) => {
                return Err(find(name, out)
                    .err()
                    .unwrap_or_else(|| usage("no card", "")));
            }
        }
    }
    list.retain(keep);
    Ok(list)
}

/// Rows of a job over the classes, on all processors; each has cards that are alike, of which most follow from one run.
fn parallel(job: &Job, classes: &[Class]) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let mut alike: Vec<&Class> = classes.iter().collect();
    alike.sort_by_key(|c| c.kernel.capability);
    let threads = crate::workers::threads();
    let parts = alike.chunks(alike.len().div_ceil(threads).max(1));
    let done: Vec<_> = std::thread::scope(|s| {
        let rows = |part: &[&Class]| over::rows(job, part.iter().copied());
        let started: Vec<_> = parts.map(|p| s.spawn(move || rows(p))).collect();
        started.into_iter().map(|t| t.join()).collect()
    });
    let mut all = vec![];
    for rows in done {
        all.extend(rows.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    Ok(all)
}

fn over_cards(a: &FitArgs, out: &Output, job: &Job) -> Result<(String, bool), Failed> {
    let chosen = chosen(a, out)?;
    let order: Vec<String> = chosen.iter().map(|g| g.id.clone()).collect();
    let (classes, none) = cards::classes(chosen, here(a));
    let rows = parallel(job, &classes).map_err(failed)?;
    let mut o = over::Over::new(job, rows, none);
    if !a.gpus.is_empty() {
        o.in_order(&order);
        o.claims = claims_in_order(a);
    }
    let s = &out.style;
    let t = match a.format {
        TableFormat::Text => text::over(&o, a.all || !a.gpus.is_empty(), s),
        TableFormat::Json => json::pretty(&o),
        TableFormat::Md => text::rows_markdown(&o.rows, s),
        TableFormat::Csv => text::rows_csv(&o.rows),
    };
    Ok((t, o.any()))
}

fn knob(a: &FitArgs, out: &Output, job: &Job, setting: &str) -> Result<(String, bool), Failed> {
    if !a.gpus.is_empty() {
        return knob_by_card(a, out, job, setting);
    }
    let l = largest::largest(job, &card(a, out)?, setting, a.step).map_err(failed)?;
    let s = &out.style;
    let t = match a.format {
        TableFormat::Text => text::largest(&l, s),
        TableFormat::Json => json::pretty(&l),
        TableFormat::Md => text::largest_markdown(&l, s),
        TableFormat::Csv => text::largest_csv(&l),
    };
    Ok((t, l.runs.is_some()))
}

/// The largest value on each of several cards.
fn knob_by_card(
    a: &FitArgs,
    out: &Output,
    job: &Job,
    setting: &str,
) -> Result<(String, bool), Failed> {
    let mut all = largest::ByCard::new(job, claims_in_order(a));
    for gpu in chosen(a, out)? {
        let d = Device::of(gpu).map_err(|e| {
            let d = Diagnostic::error("unsupported", e.to_string());
            (vec![d], Status::Unavailable)
        })?;
        let d = here(a).on(d);
        let mut row = largest::largest(job, &d, setting, a.step).map_err(failed)?;
        if a.cost {
            row.rate = largest::rate(job, &d, &row).map_err(failed)?;
        }
        all.rows.push(row);
    }
    let s = &out.style;
    let t = match a.format {
        TableFormat::Text => text::by_card(&all, s),
        TableFormat::Json => json::pretty(&all),
        TableFormat::Md => text::by_card_markdown(&all, s),
        TableFormat::Csv => text::by_card_csv(&all),
    };
    Ok((t, all.rows.iter().any(|r| r.runs.is_some())))
}

/// What somebody else says of cards, in the order of `--gpus`.
fn claims_in_order(a: &FitArgs) -> Vec<String> {
    let all = a.claims.iter().flat_map(|c| c.split(','));
    all.map(|c| c.trim().to_string()).collect()
}

/// What somebody else says of models by a method: METHOD=A,B,...
fn claims_of<'a>(a: &'a FitArgs, method: &str) -> Vec<&'a str> {
    let find = |c: &'a String| c.split_once('=').filter(|(m, _)| *m == method).map(|c| c.1);
    a.claims
        .iter()
        .find_map(find)
        .map_or(vec![], |c| c.split(',').map(str::trim).collect())
}

/// `128,256`, or `128..1024` by doubling.
fn parse_lengths(text: &str) -> Option<Vec<u64>> {
    let number = |t: &str| t.trim().parse::<u64>().ok().filter(|n| *n > 0);
    if let Some((from, to)) = text.split_once("..") {
        let (from, to) = (number(from)?, number(to)?);
        let mut all: Vec<u64> = std::iter::successors(Some(from), |n| n.checked_mul(2))
            .take_while(|n| *n < to)
            .collect();
        all.push(to);
        return Some(all);
    }
    text.split(',').map(number).collect()
}

/// A batch for every length.
fn lengths(a: &FitArgs, out: &Output, job: &Job, text: &str) -> Result<(String, bool), Failed> {
    let bad = |m: String| (vec![Diagnostic::error("bad-flag", m)], Status::Usage);
    let list = parse_lengths(text).ok_or_else(|| {
        bad(format!(
            "--lengths {text}: 128,256,... or 128..1024 is expected"
        ))
    })?;
    let agi2 = job.format.contains("AGI2");
    let rule = match a.rule.as_deref() {
        None => None,
        Some("agi2") => Some(ramp_of(a.job.as_deref()).ok_or_else(|| bad("--rule agi2 alone needs an AGI2 file with batch_size and seq_len_end; or write agi2:BATCHxLAST".into()))?),
        Some(r) => Some(schedule::Rule::parse(r).map_err(bad)?),
    };
    let s = schedule::schedule(job, &card(a, out)?, &list, a.global_batch, rule, agi2)
        .map_err(failed)?;
    let style = &out.style;
    let t = match a.format {
        TableFormat::Text => schedule::text::text(&s, style),
        TableFormat::Json => json::pretty(&s),
        TableFormat::Md => schedule::text::markdown(&s, style),
        TableFormat::Csv => schedule::text::csv(&s),
    };
    Ok((t, s.complete()))
}

/// The batch and the last length of an AGI2 file.
fn ramp_of(file: Option<&str>) -> Option<schedule::Rule> {
    let text = jobs::read_text(std::path::Path::new(file?)).ok()?;
    let doc = tonnage_core::doc::Doc::parse(file?, &text).ok()?;
    let n = |k: &str| doc.root.get(k).and_then(tonnage_core::doc::Node::count);
    Some(schedule::Rule::Agi2 {
        batch: n("batch_size")?,
        end: n("seq_len_end")?,
    })
}

/// One card: its verdict, and the largest micro-batch.
fn one_card(a: &FitArgs, out: &Output, job: &Job) -> Result<(String, bool), Failed> {
    let d = card(a, out)?;
    let t = cards::Tried::new(job, &d.gpu).map_err(failed)?;
    let o = over::Over::new(job, vec![cards::row(&t, &d)], vec![]);
    let s = &out.style;
    let t = match a.format {
        TableFormat::Text => {
            let head = o.rows.first().map_or_else(String::new, |r| {
                format!(
                    "{} on {}: {}; {}.\n\n",
                    o.job,
                    r.name,
                    r.outcome.name(),
                    t.verdict(&d).why
                )
            });
            let batch = largest::largest(job, &d, "batch", None).map_err(failed)?;
            format!(
                "{head}{}\n{}",
                text::rows(&o.rows, &[], s),
                text::largest(&batch, s)
            )
        }
        TableFormat::Json => json::pretty(&o),
        TableFormat::Md => text::rows_markdown(&o.rows, s),
        TableFormat::Csv => text::rows_csv(&o.rows),
    };
    Ok((t, o.any()))
}

fn methods(a: &FitArgs) -> Result<Vec<sizes::Method>, Failed> {
    sizes::methods(&a.methods).map_err(|d| (vec![d], Status::Usage))
}

/// What the user set, without the model; and the models of the question.
fn base(a: &FitArgs, usual: &[&str]) -> Result<(Job, Vec<sizes::Size>), Failed> {
    let mut job = Job::new("command line", "flags");
    let mut names = vec![];
    for (k, v) in &a.settings.given {
        if k == "model.id" {
            names.extend(v.split(',').map(String::from));
            continue;
        }
        job.set_text(k, v)
            .map_err(|e| (vec![Diagnostic::error("bad-flag", e)], Status::Usage))?;
    }
    if names.is_empty() {
        names = usual.iter().map(ToString::to_string).collect();
    }
    let sizes = names
        .iter()
        .map(|n| sizes::size(n))
        .collect::<Result<_, _>>()
        .map_err(|d| (vec![d], Status::BadInput))?;
    Ok((job, sizes))
}

fn resolve(job: &mut Job) -> Result<(), Vec<Diagnostic>> {
    crate::models::resolve(job, None)
}

/// What a memory can train.
fn memory(a: &FitArgs, out: &Output) -> Result<(String, bool), Failed> {
    let d = card(a, out)?;
    let methods = methods(a)?;
    let (base, sizes) = base(a, &sizes::USUAL)?;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![]);
    let work = || {
        while let Some(size) = sizes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let l = have::line(&base, size, &methods, &d, &resolve);
            done.lock().unwrap_or_else(|e| e.into_inner()).push(l);
        }
    };
    std::thread::scope(|s| {
        for _ in 1..crate::workers::threads() {
            s.spawn(work);
        }
        work();
    });
    let lines = done.into_inner().unwrap_or_else(|e| e.into_inner());
    let lines = lines
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let mut h = have::have(&base, &d, &methods, lines);
    for m in &methods {
        // in the order of the question
        let claims = claims_of(a, m.name);
        for (size, claim) in sizes.iter().zip(claims) {
            let of_size = h.lines.iter_mut().filter(|l| l.asked == size.asked);
            for c in of_size
                .flat_map(|l| &mut l.cells)
                .filter(|c| c.method == m.name)
            {
                c.claim = Some(claim.into());
            }
        }
    }
    let any = methods.iter().any(|m| h.largest(m.name).is_some());
    let s = &out.style;
    let t = match a.format {
        TableFormat::Text => sizes_text::have(&h, s),
        TableFormat::Json => json::pretty(&h),
        TableFormat::Md => sizes_text::have_markdown(&h, s),
        TableFormat::Csv => sizes_text::have_csv(&h),
    };
    Ok((t, any))
}

/// What a model needs.
fn model(a: &FitArgs, out: &Output) -> Result<(String, bool), Failed> {
    let methods = methods(a)?;
    let (base, sizes) = base(a, &[])?;
    let (classes, _) = cards::classes(chosen(a, out)?, here(a));
    let (instances, _) = out.catalogs.instances();
    let (mut t, mut any, mut all) = (String::new(), false, vec![]);
    let s = &out.style;
    for (i, size) in sizes.iter().enumerate() {
        let mut n = need::need(
            &base,
            size,
            &methods,
            &classes,
            &instances,
            &|j| parallel(j, &classes),
            &resolve,
        )
        .map_err(failed)?;
        for p in &mut n.plans {
            p.claim = claims_of(a, p.method).get(i).map(ToString::to_string);
        }
        any |= n
            .plans
            .iter()
            .flat_map(|p| &p.picks)
            .any(|k| k.row.is_some());
        if i > 0 && a.format == TableFormat::Text {
            t.push('\n');
        }
        match a.format {
            TableFormat::Text => t += &sizes_text::need(&n, s),
            TableFormat::Json => all.push(n),
            TableFormat::Md => t += &sizes_text::need_markdown(&n, s),
            TableFormat::Csv if i > 0 => {
                t += sizes_text::need_csv(&n)
                    .split_once('\n')
                    .map_or("", |x| x.1)
            }
            TableFormat::Csv => t += &sizes_text::need_csv(&n),
        }
    }
    if a.format == TableFormat::Json {
        t = match &all[..] {
            [one] => json::pretty(one),
            _ => json::pretty(&all),
        };
    }
    Ok((t, any))
}
