//! Sizes ("1GiB") and durations ("500ms") as people write them.

/// Bytes from `"1GiB"`, `"512 MiB"`, `"4096"`. Only binary units: a gigabyte that is not 2^30
/// bytes is a mistake when two disks must be equal.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 6] = [
        ("", 0),
        ("B", 0),
        ("KiB", 10),
        ("MiB", 20),
        ("GiB", 30),
        ("TiB", 40),
    ];
    let (number, unit) = split(text)?;
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "`{unit}` is not a unit of size: write KiB, MiB, GiB or TiB"
        ));
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// Bytes per second from `"100M"`, `"50MiB/s"`. Here short units are taken too, and mean the binary ones.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.trim().trim_end_matches("/s").trim_end();
    let long = match size.chars().last() {
        Some('K' | 'M' | 'G') => format!("{size}iB"),
        _ => size.to_owned(),
    };
    parse_size(&long)
}

/// Milliseconds from `"500ms"`, `"10s"`, `"2min"`, `"12h"`, `"7d"`.
pub(crate) fn parse_duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] = [
        ("ms", 1),
        ("s", 1000),
        ("min", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ];
    let (number, unit) = split(text)?;
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "`{text}` is not a duration: write for example 500ms, 10s or 2min"
        ));
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("`{text}` is too long"))
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number = text[..digits]
        .parse()
        .map_err(|_| format!("`{text}` does not start with a whole number"))?;
    Ok((number, text[digits..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("1GB").is_err());
        assert!(parse_size("GiB").is_err());
        assert!(parse_size("-1GiB").is_err());
        assert!(parse_size("99999999999TiB").is_err());
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("100M"), Ok(100 << 20));
        assert_eq!(parse_rate("50MiB/s"), Ok(50 << 20));
        assert_eq!(parse_rate("64K/s"), Ok(64 << 10));
        assert_eq!(parse_rate("1G"), Ok(1 << 30));
        assert!(parse_rate("fast").is_err());
        assert!(parse_rate("100Mbit").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration_ms("500ms"), Ok(500));
        assert_eq!(parse_duration_ms("10s"), Ok(10_000));
        assert_eq!(parse_duration_ms("2min"), Ok(120_000));
        assert_eq!(parse_duration_ms("7d"), Ok(7 * 86_400_000));
        assert!(parse_duration_ms("10").is_err());
    }
}
