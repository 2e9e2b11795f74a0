//! Figures, as a table for people and as JSON for programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// What one name measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Name, e.g. `write.throughput`.
    pub name: &'static str,
    /// Unit of `ours` and `raw`.
    pub unit: &'static str,
    /// Median of our rounds.
    pub ours: f64,
    /// Median of the raw limit's rounds.
    pub raw: f64,
    /// `ours` / `raw`.
    pub ratio: f64,
    /// Every round, interleaved.
    pub rounds: Vec<Value>,
    /// What was set, and what else there is to say.
    pub settings: Value,
}

impl Figure {
    /// Of rounds `(ours, raw)`, each with further members.
    pub fn new(name: &'static str, unit: &'static str, rounds: Vec<(f64, f64, Value)>, settings: Value) -> Self {
        let ours = median(rounds.iter().map(|round| round.0));
        let raw = median(rounds.iter().map(|round| round.1));
        let rounds = rounds.into_iter().map(|(ours, raw, more)| {
            let mut round = json!({"ours": rounded(ours), "raw": rounded(raw), "ratio": rounded(ours / raw)});
            if let (Value::Object(round), Value::Object(more)) = (&mut round, more) {
                round.extend(more);
            }
            round
        });
        let rounds = rounds.collect();
        Self { name, unit, ours: rounded(ours), raw: rounded(raw), ratio: rounded(ours / raw), rounds, settings }
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// To four digits: more would claim a precision that there is not.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    if scale >= 1.0 { (value * scale).round() / scale } else { value.round() }
}

/// The table.
pub fn table(figures: &[Figure]) -> String {
    let head = ["name", "unit", "ours", "raw", "ratio", "ratios of the rounds"].map(str::to_owned);
    let row = |figure: &Figure| {
        let ratios =
            figure.rounds.iter().filter_map(|round| round["ratio"].as_f64()).map(|ratio| format!("{ratio:.2}"));
        [
            figure.name.to_owned(),
            figure.unit.to_owned(),
            number(figure.ours),
            number(figure.raw),
            format!("{:.2}", figure.ratio),
            ratios.collect::<Vec<_>>().join(" "),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(figures.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let [name, unit, ours, raw, ratio, rounds] = row;
        let [a, b, c, d, e, _] = widths;
        format!("{name:<a$}  {unit:<b$}  {ours:>c$}  {raw:>d$}  {ratio:>e$}  {rounds}\n")
    };
    rows.iter().map(line).collect()
}

/// With as many digits as people read, and thousands set apart.
fn number(value: f64) -> String {
    if value.abs() < 1_000.0 {
        return format!("{}", rounded(value));
    }
    let digits = format!("{value:.0}");
    let group = |(at, digit): (usize, char)| {
        let apart = at > 0 && (digits.len() - at) % 3 == 0;
        apart.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

/// Writes the JSON array.
pub fn write(figures: &[Figure], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }

    #[test]
    fn four_digits_are_kept() {
        assert_eq!(rounded(123_456.0), 123_456.0);
        assert_eq!(rounded(1.234_56), 1.235);
        assert_eq!(rounded(0.001_234_56), 0.001_235);
    }

    #[test]
    fn a_table_is_aligned() {
        let rounds = vec![(90_000.0, 100_000.0, json!({})), (1_230_000.0, 1_000_000.0, json!({}))];
        let figure = Figure::new("write.throughput", "commands/s", rounds, json!({}));
        let text = table(&[figure]);
        assert_eq!(
            text,
            "name              unit           ours      raw  ratio  ratios of the rounds\n\
             write.throughput  commands/s  660,000  550,000   1.20  0.90 1.23\n"
        );
    }
}
