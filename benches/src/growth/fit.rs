//! Slopes, and how to say them. Pure.

/// Changes smaller than this are none, as a share.
const NO_CHANGE: f64 = 0.005;

/// By how much x grows for the change that is said, and how that is called.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub ratio: f64,
    pub name: &'static str,
}

/// The exponent b of the power law y = a·xᵇ nearest to the points (least squares of the logarithms), and
/// by how much the worst point is off it, as a share. `None` without two different x, or with a
/// coordinate that is not above 0.
pub fn power_law(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.iter().any(|(x, y)| !(*x > 0.0 && *y > 0.0)) {
        return None;
    }
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let (exponent, at_zero) = line(&logs)?;
    let off = logs
        .iter()
        .map(|(x, y)| (y - at_zero - exponent * x).abs().exp_m1());
    Some((exponent, off.fold(0.0, f64::max)))
}

/// Slope and height at 0 of the line nearest to the points; `None` without two different x.
pub fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.len() < 2 || spread <= f64::EPSILON {
        return None;
    }
    let common: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let slope = common / spread;
    Some((slope, mean_y - slope * mean_x))
}

/// "puts per second fall 3 % per tenfold data (the points are within 2 % of that)".
pub fn in_words(subject: &str, step: Step, points: &[(f64, f64)]) -> String {
    let Some((exponent, off)) = power_law(points) else {
        return format!("{subject}: too few points for a slope");
    };
    let times = step.ratio.powf(exponent);
    let change = times - 1.0;
    let moves = if change.abs() < NO_CHANGE {
        "stay the same".to_owned()
    } else if change < 0.0 {
        format!("fall {} %", percent(-change))
    } else if times < 2.0 {
        format!("rise {} %", percent(change))
    } else {
        format!("grow {times:.1}-fold")
    };
    format!(
        "{subject} {moves} per {} (the points are within {} % of that)",
        step.name,
        percent(off)
    )
}

/// Two digits that count below ten, whole numbers above.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        ..0.05 => "0.1".to_owned(),
        ..9.95 => format!("{percent:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{percent:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENFOLD_DATA: Step = Step {
        ratio: 10.0,
        name: "tenfold data",
    };

    /// Points of y = height · factor^(log10 x).
    fn points(per_tenfold: f64) -> Vec<(f64, f64)> {
        [5, 6, 7]
            .map(|decade| (10_f64.powi(decade), 3e4 * per_tenfold.powi(decade)))
            .to_vec()
    }

    #[test]
    fn a_power_law_gives_its_exponent_back() {
        let points: Vec<_> = [1.0, 8.0, 64.0, 512.0]
            .map(|x: f64| (x, 7.0 * x.powf(-0.25)))
            .to_vec();
        let (exponent, off) = power_law(&points).unwrap();
        assert!((exponent + 0.25).abs() < 1e-9 && off < 1e-9, "{exponent} {off}");
    }

    #[test]
    fn a_line_gives_slope_and_height_back() {
        let (slope, at_zero) = line(&[(1.0, 5.0), (100.0, 203.0), (1_000.0, 2_003.0)]).unwrap();
        assert!(
            (slope - 2.0).abs() < 1e-9 && (at_zero - 3.0).abs() < 1e-6,
            "{slope} {at_zero}"
        );
    }

    #[test]
    fn slopes_are_said() {
        let cases = [
            (0.97, "puts per second fall 3 % per tenfold data"),
            (0.5, "puts per second fall 50 % per tenfold data"),
            (0.995_2, "puts per second stay the same per tenfold data"),
            (1.042, "puts per second rise 4.2 % per tenfold data"),
            (1.6, "puts per second rise 60 % per tenfold data"),
            (3.21, "puts per second grow 3.2-fold per tenfold data"),
        ];
        for (per_tenfold, words) in cases {
            let said = in_words("puts per second", TENFOLD_DATA, &points(per_tenfold));
            assert!(said.starts_with(words), "{said}");
        }
    }

    #[test]
    fn what_is_no_power_law_says_how_far_off_it_is() {
        // The nearest line through logarithms of 1, 2, 1 is flat at a third of ln 2.
        let said = in_words("gets", TENFOLD_DATA, &[(1.0, 1.0), (10.0, 2.0), (100.0, 1.0)]);
        assert_eq!(
            said,
            "gets stay the same per tenfold data (the points are within 59 % of that)"
        );
    }

    #[test]
    fn too_little_is_said_not_guessed() {
        for points in [
            vec![],
            vec![(1.0, 2.0)],
            vec![(1.0, 2.0), (1.0, 3.0)],
            vec![(1.0, 0.0), (2.0, 1.0)],
        ] {
            let said = in_words("gets", TENFOLD_DATA, &points);
            assert_eq!(said, "gets: too few points for a slope");
        }
        assert_eq!(line(&[(1.0, 1.0)]), None);
    }
}
