//! How names are compared: letters and digits only, lower case. `RTX 4090`, `rtx-4090` and `RTX4090` are one name;
//! `RTX 409` is another. Shared by the crate and its build script.

/// The comparison form of a GPU or instance name.
pub fn normalise(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// The name without its vendor word, as older drivers print it (`Tesla T4`, `GeForce RTX 3090`).
pub fn without_vendor(name: &str) -> Option<&str> {
    ["NVIDIA ", "AMD ", "Intel ", "Apple "]
        .iter()
        .find_map(|v| name.strip_prefix(v))
}
