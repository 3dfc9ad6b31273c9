//! [`SinkState`]: what a resumed run needs to continue with a target, typed by the target that wrote it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Remedy, Result};

/// The typed body of one kind of target.
pub trait SinkBody: Serialize + DeserializeOwned {
    /// Which target writes it.
    const KIND: &'static str;
    /// Its version; another one is not read.
    const VERSION: u32;

    /// The name of the object that is being made, where the target's own name does not contain it.
    fn object(&self) -> Option<String> {
        None
    }
}

/// The state of a sink as a checkpoint keeps it: only the target of its kind opens it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkState {
    kind: String,
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    body: Value,
}

impl SinkState {
    /// The state of a sink.
    pub(crate) fn of<T: SinkBody>(body: &T) -> Self {
        Self {
            kind: T::KIND.to_owned(),
            version: T::VERSION,
            object: body.object(),
            // The bodies are plain data: nothing in them can fail to serialise.
            body: serde_json::to_value(body).unwrap_or_default(),
        }
    }

    /// The body, if it is of this kind and version.
    ///
    /// # Errors
    /// `Corrupt` when it is not.
    pub(crate) fn open<T: SinkBody>(&self) -> Result<T> {
        let wrong = |why: String| {
            Error::new(Kind::Corrupt, format!("cannot use the checkpoint: {why}"))
                .with_remedy(Remedy::Restart)
        };
        if self.kind != T::KIND || self.version != T::VERSION {
            let why = format!(
                "it is of a target {} version {}, not {} version {}",
                self.kind,
                self.version,
                T::KIND,
                T::VERSION
            );
            return Err(wrong(why));
        }
        serde_json::from_value(self.body.clone()).map_err(|error| wrong(error.to_string()))
    }

    /// The object that is being made, for people.
    pub(crate) fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        a: u32,
    }

    impl SinkBody for One {
        const KIND: &'static str = "one";
        const VERSION: u32 = 1;
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Other {
        a: u32,
    }

    impl SinkBody for Other {
        const KIND: &'static str = "one";
        const VERSION: u32 = 2;
    }

    #[test]
    fn only_the_kind_and_version_that_wrote_a_state_opens_it() {
        let state = SinkState::of(&One { a: 7 });
        assert_eq!(state.open::<One>().unwrap(), One { a: 7 });
        assert_eq!(state.open::<Other>().unwrap_err().kind(), Kind::Corrupt);
    }
}
