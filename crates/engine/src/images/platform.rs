//! Platforms: which of an index's images runs here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in the words of Go's build system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: unknown operating system or architecture: invalid argument")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform this binary was built for.
    pub fn host() -> Self {
        Self::normalised("linux", std::env::consts::ARCH, None)
    }

    /// Whether an image for `other` runs where `self` is wanted. A missing variant of the image
    /// runs anywhere; ARM's 32-bit variants run on equal or later ones.
    pub fn accepts(&self, other: &Platform) -> bool {
        let other = Self::normalised(&other.os, &other.architecture, other.variant.as_deref());
        if self.os != other.os || self.architecture != other.architecture {
            return false;
        }
        match (self.variant.as_deref(), other.variant.as_deref()) {
            (None, None) | (_, None) => true,
            (None, Some(image)) => self.architecture != "amd64" || image == "v1",
            (Some(wanted), Some(image)) if self.architecture == "arm" => image <= wanted,
            (Some(wanted), Some(image)) => wanted == image,
        }
    }

    /// The best of `offered` for `self`: the exact variant, else the nearest one beneath it.
    pub fn best<'a, T>(&self, offered: impl IntoIterator<Item = (&'a Platform, T)>) -> Option<T> {
        let mut best: Option<(&Platform, T)> = None;
        for (platform, item) in offered {
            let is_better =
                best.as_ref().is_none_or(|(chosen, _)| platform.variant > chosen.variant);
            if self.accepts(platform) && is_better {
                best = Some((platform, item));
            }
        }
        best.map(|(_, item)| item)
    }

    fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = os.to_ascii_lowercase();
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant.filter(|v| *v != "v1")),
            ("i386" | "i686" | "x86" | "386", _) => ("386", None),
            ("aarch64" | "arm64", Some("8" | "v8") | None) => ("arm64", None),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("powerpc64", variant) if cfg!(target_endian = "little") => ("ppc64le", variant),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            architecture: architecture.to_owned(),
            os,
            os_version: None,
            variant: variant.map(str::to_owned),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    /// Reads `linux/arm64/v8`, `linux/amd64`, `arm64` or `linux`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePlatformError(text.to_owned());
        let is_word = |w: &str| {
            !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|w| is_word(w)) {
            return Err(bad());
        }
        match parts.as_slice() {
            ["linux" | "windows" | "darwin" | "freebsd"] => {
                Ok(Self { os: parts[0].to_owned(), ..Self::host() })
            }
            [architecture] => Ok(Self::normalised("linux", architecture, None)),
            [os, architecture] => Ok(Self::normalised(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::normalised(os, architecture, Some(variant))),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (one, other) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
            ("amd64", "linux/amd64"),
            ("linux/armel", "linux/arm/v6"),
        ] {
            assert_eq!(platform(one), platform(other), "{one} {other}");
        }
        assert!("linux//x".parse::<Platform>().is_err());
        assert!("a/b/c/d".parse::<Platform>().is_err());
    }

    #[test]
    fn the_nearest_variant_that_runs_is_chosen() {
        let offered =
            ["linux/amd64", "linux/arm/v5", "linux/arm/v6", "linux/arm64", "windows/amd64"]
                .map(platform);
        let best = |wanted: &str| platform(wanted).best(offered.iter().map(|p| (p, p.to_string())));
        assert_eq!(best("linux/arm/v7").as_deref(), Some("linux/arm/v6"));
        assert_eq!(best("linux/amd64").as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/arm64/v8").as_deref(), Some("linux/arm64"));
        assert_eq!(best("linux/s390x"), None);
    }
}
