//! The command line of a serving engine: of a job that generates, or of another command line of the same engine.
//!
//! The law, checked on every export: the line that is written reads back as the same settings (`tonnage estimate -- LINE`), so that it
//! estimates to the same bytes.

use super::{File, Format, Options, Written, request};
use tonnage_core::serve::Serving;
use tonnage_core::serve::command::{self, Command, llamacpp::Llama, vllm::Vllm};
use tonnage_core::{Diagnostic, Job};

/// The words of a line for a POSIX shell, single quotes as the launch commands have them.
pub fn words(line: &str) -> Vec<String> {
    let (mut out, mut word, mut inside, mut any) = (vec![], String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => (inside, any) = (!inside, true),
            '\\' if !inside => word.extend(chars.next()),
            c if c.is_whitespace() && !inside => {
                if any || !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        out.push(word);
    }
    out
}

fn cannot(message: String, help: &str) -> Vec<Diagnostic> {
    vec![Diagnostic::error("cannot-express", message).help(help)]
}

/// What a job that generates asks of an engine.
struct Wanted {
    model: String,
    revision: Option<String>,
    context: u64,
    sequences: u64,
    dtype: Option<&'static str>,
}

/// # Errors
/// One for each thing that an engine's command line cannot say.
fn wanted(job: &Job, engine: &str) -> Result<Wanted, Vec<Diagnostic>> {
    if job.word("work.kind") != "generate" {
        return Err(cannot(
            format!("a job that does not generate has no command line of {engine}"),
            "--kind generate --prompt-len N --new-tokens N",
        ));
    }
    let mut bad = vec![];
    for (key, plain) in [
        ("generate.beams", "1"),
        ("lora.r", ""),
        ("quant.format", ""),
        ("stack.torch", ""),
    ] {
        if let Some(g) = job.given(key).filter(|g| g.value.shown() != plain) {
            // versions of libraries are not the engine's
            if !key.starts_with("stack.") {
                bad.extend(cannot(
                    format!("`{key}` = {} cannot be said to {engine}", g.value.shown()),
                    "leave it out, or give the engine's own command line after `--`",
                ));
            }
        }
    }
    let dtype = match job.word("model.dtype").as_str() {
        "bf16" => Some("bfloat16"),
        "fp16" => Some("float16"),
        "fp32" => {
            bad.extend(cannot(
                format!("`model.dtype` = fp32: {engine} with 32-bit weights is not modelled"),
                "bf16 or fp16",
            ));
            None
        }
        _ => None,
    };
    let prompt = job
        .count("generate.prompt_len")
        .or(job.count("train.seq_len"));
    let (Some(prompt), Some(new)) = (prompt, job.count("generate.new_tokens")) else {
        bad.push(
            Diagnostic::error("missing", "the lengths of prompt and answer are not given")
                .help("--prompt-len N --new-tokens N"),
        );
        return Err(bad);
    };
    let model = [job.word("model.id"), job.word("model.path")]
        .into_iter()
        .find(|m| !m.is_empty());
    match model {
        Some(model) if bad.is_empty() => Ok(Wanted {
            model,
            revision: Some(job.word("model.revision")).filter(|r| !r.is_empty()),
            context: prompt + new,
            sequences: job.count("generate.batch_size").unwrap_or(1),
            dtype,
        }),
        Some(_) => Err(bad),
        None => {
            bad.push(
                Diagnostic::error("missing", "the model has neither id nor path")
                    .help("an engine loads a model by its name or folder"),
            );
            Err(bad)
        }
    }
}

/// What is written must read back as it was; else the writer is wrong.
fn held(line: &str) -> Result<Command, Vec<Diagnostic>> {
    let back = command::parse(&words(line)).map_err(|d| vec![d])?;
    if launch(&back) == line {
        Ok(back)
    } else {
        Err(vec![Diagnostic::error(
            "defect",
            format!("`{line}` reads back as `{}`", launch(&back)),
        )])
    }
}

/// The line that starts it.
pub fn launch(c: &Command) -> String {
    match c {
        Command::Vllm(v) => v.launch(),
        Command::Sglang(s) => s.launch(),
        Command::Llama(l) => llama(l),
    }
}

fn llama(l: &Llama) -> String {
    l.launch(l.file.as_deref().unwrap_or_default())
}

fn written(line: String, name: &str, what: &str) -> Written {
    Written {
        files: vec![File {
            name: name.into(),
            text: format!("#!/bin/sh\nexec {line}\n"),
            what: what.into(),
        }],
        command: Some(line),
        notes: vec![],
    }
}

/// `--to vllm`: the server for a job that generates.
///
/// # Errors
/// What the job says and the command line cannot.
pub fn vllm(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let w = wanted(job, "vLLM")?;
    let v = Vllm {
        model: w.model,
        revision: w.revision,
        max_model_len: Some(w.context),
        max_num_seqs: Some(w.sequences),
        kept: w
            .dtype
            .map(|t| format!("--dtype {t}"))
            .into_iter()
            .collect(),
        ..Vllm::default()
    };
    let line = v.launch();
    held(&line)?;
    Ok(written(line, "serve.sh", "vLLM's command line"))
}

/// `--to llama-server`: the same with a model file, which a job does not name.
///
/// # Errors
/// No model file, and what the command line cannot say.
pub fn llama_server(job: &Job, options: &Options) -> Result<Written, Vec<Diagnostic>> {
    let w = wanted(job, "llama-server")?;
    let file = options.gguf.clone().ok_or_else(|| {
        vec![
            Diagnostic::error(
                "missing",
                format!(
                    "llama-server loads a GGUF file, and none of {} is named",
                    w.model
                ),
            )
            .help("--gguf FILE"),
        ]
    })?;
    let all = w.context.saturating_mul(w.sequences).to_string();
    let slots = w.sequences.to_string();
    // slots share the context: each gets its part
    let line: Vec<String> = ["llama-server", "-m", &file, "-c", &all, "-np", &slots]
        .map(String::from)
        .into();
    let line = launch(&command::parse(&line).map_err(|d| vec![d])?);
    held(&line)?;
    let mut out = written(line, "serve.sh", "llama-server's command line");
    out.notes.extend(w.dtype.map(|t| {
        Diagnostic::note(
            "as-the-tool-does",
            format!("`model.dtype` = {t} is the file's matter: weights have its types"),
        )
    }));
    Ok(out)
}

/// A command line with its answer, in a format: the engine's own line, or a request for the machines that it needs.
///
/// # Errors
/// The format is another engine's, a trainer's, or the request names no card.
pub fn command(
    c: &Command,
    answer: &Serving,
    format: &Format,
    options: &Options,
) -> Result<Written, Vec<Diagnostic>> {
    let ask = || request::Ask::of_serving(answer, options);
    match (format.name, c) {
        ("vllm", Command::Vllm(_)) | ("llama-server", Command::Llama(_)) => {
            let line = launch(c);
            held(&line)?;
            Ok(written(line, "serve.sh", "the engine's command line"))
        }
        ("slurm", _) => Ok(request::slurm::of(&ask()?)),
        ("skypilot", _) => Ok(request::skypilot::of(&ask()?)),
        ("kubernetes", _) => Ok(request::kubernetes::of(ask()?)),
        ("ray", _) => Ok(request::ray::of(ask()?)),
        (other, _) => Err(cannot(
            format!(
                "a command line of {} cannot be said as {other}",
                answer.engine
            ),
            "its own engine's line, or slurm, skypilot, kubernetes, ray",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_line_is_split_as_a_shell_splits_it() {
        assert_eq!(
            words("vllm serve 'my model' --x '' a'b'c 'it'\\''s'"),
            ["vllm", "serve", "my model", "--x", "", "abc", "it's"]
        );
    }
}
