//! Durations as Gateway API writes them (GEP-2257): one to four numbers of up to five digits, each with a unit.

use std::time::Duration;

/// Reads `1h30m`, `90s`, `250ms`; `None` when the text has another form.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let unit_len = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(unit_len);
        sum += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = tail;
        if rest.is_empty() {
            return Some(sum);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_gateway_api_writes_them() {
        for (text, millis) in
            [("24h", 86_400_000), ("1h30m", 5_400_000), ("90s", 90_000), ("250ms", 250), ("0s", 0)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "24", "h", "1d", "-1s", "1.5h", "123456s", "1h1m1s1ms1s", "1 h", "1H"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
