//! `emostream config`: the effective settings, each with where it came from.

use super::Failure;
use super::process::SettingsArgs;
use crate::config;

/// Print the effective settings, each with where it came from
///
/// Defaults, then the file of --config, then the environment (EMOSTREAM__SECTION__KEY), then flags; later ones win.
/// What is printed can be saved as a settings file, apart from hidden secrets.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints them to standard output.
///
/// # Errors
/// When they are not valid.
pub fn run(args: &Args) -> Result<(), Failure> {
    print!("{}", config::show(&args.settings.load()?));
    Ok(())
}
