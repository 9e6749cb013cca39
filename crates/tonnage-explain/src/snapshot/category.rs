//! What a block is for, by the stack that allocated it.

use super::Snapshot;
use serde::Serialize;

/// Categories of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Parameters and buffers: moved or loaded by `nn.Module`, a checkpoint's reader.
    Parameters,
    /// What an optimizer keeps.
    OptimizerState,
    /// An optimizer's step: temporaries.
    OptimizerStep,
    /// Made by `forward`: activations and temporaries of the forward pass.
    Forward,
    /// Made by the autograd engine: gradients and temporaries of the backward pass. Its threads have no Python stack.
    Backward,
    /// Collectives.
    Communication,
    /// cuBLAS' own.
    Workspace,
    /// The user's own code outside of modules.
    Other,
    /// No stacks were recorded.
    NoStack,
}

impl Category {
    /// All, in the order in which they are shown.
    pub const ALL: [Category; 9] = [
        Category::Parameters,
        Category::OptimizerState,
        Category::OptimizerStep,
        Category::Forward,
        Category::Backward,
        Category::Communication,
        Category::Workspace,
        Category::Other,
        Category::NoStack,
    ];

    /// Words for people.
    pub fn words(self) -> &'static str {
        match self {
            Category::Parameters => "parameters",
            Category::OptimizerState => "optimizer states",
            Category::OptimizerStep => "optimizer step",
            Category::Forward => "forward",
            Category::Backward => "backward, gradients",
            Category::Communication => "communication",
            Category::Workspace => "library workspaces",
            Category::Other => "own code",
            Category::NoStack => "no stack recorded",
        }
    }
}

/// A module that moves or loads its tensors.
fn moved(file: &str, name: &str) -> bool {
    let names = [
        "_apply",
        "to",
        "cuda",
        "half",
        "bfloat16",
        "float",
        "to_empty",
        "_load_from_state_dict",
    ];
    file.contains("torch/nn/modules/module.py") && names.contains(&name)
}

/// PyTorch's default cuBLAS workspace (`:4096:2:16:8`); 32 MiB of newer cards are no number of their own.
const CUBLAS: u64 = 8_519_680;

/// Categories of stacks, worked out once each.
#[derive(Debug)]
pub struct Categories {
    known: Vec<Option<Category>>,
    any: bool,
}

impl Categories {
    /// For a snapshot's stacks.
    pub fn new(s: &Snapshot) -> Categories {
        Categories {
            known: vec![None; s.stacks.len()],
            any: s.stacks.len() > 1,
        }
    }

    /// Of a block with this stack and size asked for.
    pub fn of(&mut self, s: &Snapshot, stack: u32, requested: u64) -> Category {
        if requested == CUBLAS {
            return Category::Workspace;
        }
        if let Some(Some(c)) = self.known.get(stack as usize) {
            return *c;
        }
        let c = self.work_out(s, stack);
        if let Some(k) = self.known.get_mut(stack as usize) {
            *k = Some(c);
        }
        c
    }

    fn work_out(&self, s: &Snapshot, stack: u32) -> Category {
        let frames = s.stacks.get(stack);
        if frames.is_empty() {
            return if self.any {
                Category::Backward
            } else {
                Category::NoStack
            };
        }
        let mut found = Category::Other;
        // innermost first: the outermost that tells decides between forward and the rest
        for f in frames {
            let f = s.frames[*f as usize];
            let file = s.texts.get(f.file);
            let name = s.texts.get(f.name);
            let unix = file.replace('\\', "/");
            let of = |w: &str| unix.contains(w);
            if of("torch/optim/")
                || of("bitsandbytes/optim/")
                || of("deepspeed/ops/adam")
                || of("transformers/optimization")
            {
                let init = name.contains("init_group")
                    || name.contains("init_state")
                    || name.contains("get_state_buffer");
                if init {
                    return Category::OptimizerState;
                }
                found = Category::OptimizerStep;
            } else if (of("torch/_tensor.py") || of("torch/autograd/"))
                && (name == "backward" || name.contains("run_backward") || name == "grad")
            {
                return Category::Backward;
            } else if of("torch/distributed/") && found == Category::Other {
                found = Category::Communication;
            } else if moved(&unix, name)
                || matches!(name, "from_pretrained" | "load_checkpoint")
                || of("safetensors/")
                || name.starts_with("load_state_dict")
            {
                return Category::Parameters;
            } else if (name == "forward" || of("torch/nn/modules/module.py"))
                && found == Category::Other
            {
                found = Category::Forward;
            }
        }
        found
    }
}
