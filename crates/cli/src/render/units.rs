//! Figures for people.

/// `1.5 GiB`; whole below a KiB.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    const STEP: u64 = 1024;
    if bytes < STEP {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / STEP.ilog2();
    let unit = STEP.pow(power);
    let whole = bytes / unit;
    // Rounded down, as "done" never should be shown too large; in 128 bits against overflow.
    let tenth = u128::from(bytes % unit) * 10 / u128::from(unit);
    let name = UNITS[power as usize - 1];
    if tenth == 0 {
        format!("{whole} {name}")
    } else {
        format!("{whole}.{tenth} {name}")
    }
}

/// `12.3%`, rounded down: 100.0% only when all is done.
pub(crate) fn percent(done: u64, total: u64) -> String {
    let tenths = if total == 0 {
        1000
    } else {
        u128::from(done.min(total)) * 1000 / u128::from(total)
    };
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// `0:42`, `1:02:03`.
pub(crate) fn duration(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 {
        format!("{h}:{m:02}:{s:02}")
    } else {
        format!("{m}:{s:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(percent(999, 1000), "99.9%");
        assert_eq!(percent(u64::MAX - 1, u64::MAX), "99.9%");
        assert_eq!(percent(0, 0), "100.0%");
        assert_eq!(duration(42), "0:42");
        assert_eq!(duration(3723), "1:02:03");
    }
}
