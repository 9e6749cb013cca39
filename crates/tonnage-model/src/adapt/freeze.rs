//! Keeping parts of a model fixed: a frozen parameter has no gradient and no optimizer state, and what only its gradient would need
//! is not saved.

use crate::error::ModelError;
use crate::net::{ModuleId, Net};
use crate::run::Run;

/// The children of the model's first list of numbered layers, in order.
pub fn layers(net: &Net) -> Vec<ModuleId> {
    let numbered = |id: &ModuleId| {
        let c = &net.module(*id).children;
        !c.is_empty()
            && c.iter().enumerate().all(|(i, c)| {
                net.module(*c).name.rsplit('.').next() == Some(i.to_string().as_str())
            })
    };
    net.preorder()
        .into_iter()
        .find(numbered)
        .map_or(vec![], |id| net.module(id).children.clone())
}

/// `requires_grad_(False)` on the first `n` layers and, if `embeddings`, on everything that is registered before the layers
/// (token and position embeddings). More layers than there are is an error.
pub fn freeze_layers(m: &mut Run, n: u64, embeddings: bool) -> Result<(), ModelError> {
    let all = layers(&m.net);
    if n > all.len() as u64 {
        return Err(ModelError::field(
            "freeze_layers",
            format!("{n} of {} layers", all.len()),
        ));
    }
    let order = m.net.preorder();
    let first = all
        .first()
        .and_then(|f| order.iter().position(|m| m == f))
        .unwrap_or(0);
    let mut chosen: Vec<ModuleId> = if embeddings {
        order[..first].to_vec()
    } else {
        vec![]
    };
    for l in &all[..n as usize] {
        let prefix = format!("{}.", m.net.module(*l).name);
        chosen.extend(
            order
                .iter()
                .filter(|id| **id == *l || m.net.module(**id).name.starts_with(&prefix)),
        );
    }
    for id in chosen {
        m.freeze_module(id);
    }
    Ok(())
}
