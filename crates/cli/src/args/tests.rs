use super::{Address, Args, Command};
use clap::{CommandFactory, Parser};

#[test]
fn the_definition_is_consistent() {
    Args::command().debug_assert();
}

/// Every command an operator sees has an example in its help.
#[test]
fn every_visible_command_has_an_example() {
    let mut seen = 0;
    for command in Args::command()
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
    {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(help.contains("holdfast "), "{}", command.get_name());
        seen += 1;
    }
    assert!(seen > 10);
}

#[test]
fn addresses_are_those_of_drbd() {
    let parse = |text: &str| {
        text.parse::<Address>()
            .map(|a| (a.resource, a.node, a.volume))
    };
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(parse("r"), Ok(("r".into(), None, None)));
    assert_eq!(parse("r:p"), Ok(("r".into(), some("p"), None)));
    assert_eq!(parse("r/v"), Ok(("r".into(), None, some("v"))));
    assert_eq!(parse("r:p/v"), Ok(("r".into(), some("p"), some("v"))));
    for bad in ["", ":p", "r:", "r/", "r:/v"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn json_may_stand_before_and_behind_the_command() {
    for line in [
        ["holdfast", "--json", "status"],
        ["holdfast", "status", "--json"],
    ] {
        let args = Args::try_parse_from(line).expect("valid");
        assert!(args.json && matches!(args.command, Command::Status(_)));
    }
}

#[test]
fn a_record_server_needs_exactly_one_log() {
    let start = ["holdfast", "record-server", "--listen", "127.0.0.1:0"];
    assert!(Args::try_parse_from(start).is_err());
    assert!(Args::try_parse_from(start.iter().chain(&["--file", "f"])).is_ok());
    assert!(Args::try_parse_from(start.iter().chain(&["--file", "f", "--nbd-unix", "s"])).is_err());
}
