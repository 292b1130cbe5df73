//! Paths of settings, which are kept as JSON and so must be UTF-8.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

/// Takes a path that is UTF-8 and refuses another by its name.
#[derive(Clone)]
pub(super) struct Utf8Path;

impl TypedValueParser for Utf8Path {
    type Value = String;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        value.to_str().map(str::to_owned).ok_or_else(|| {
            let name = value.display();
            let problem = format!("the name {name} is not UTF-8: rename it, or name its folder\n");
            Error::raw(ErrorKind::InvalidUtf8, problem).with_cmd(command)
        })
    }
}
