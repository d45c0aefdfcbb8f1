//! The colours of figures and of the page around them, once for light and once for dark surroundings.
//!
//! A figure carries its light colours as plain attributes, which every viewer understands, and classes beside them, to
//! which a style sheet gives the dark ones.

use plotters::style::RGBColor;
use std::fmt::Write;

/// What a colour is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Titles.
    Text,
    /// Labels.
    Muted,
    /// Lines that carry the eye along a value.
    Grid,
    /// Single values behind a smoothed curve.
    Raw,
    /// The first curve.
    First,
    /// The second.
    Second,
}

/// (what for, class, light, dark).
const INKS: [(Ink, &str, u32, u32); 6] = [
    (Ink::Text, "text", 0x001B_2430, 0x00E6_EBF0),
    (Ink::Muted, "muted", 0x0066_727F, 0x0093_A0AD),
    (Ink::Grid, "grid", 0x00E6_EAEE, 0x002A_3139),
    (Ink::Raw, "raw", 0x00A9_C6E8, 0x0034_567E),
    (Ink::First, "first", 0x001F_5FAE, 0x0073_ADF5),
    (Ink::Second, "second", 0x00D9_480F, 0x00FF_9D5C),
];

/// What lies beneath, light and dark.
const PAPER: (u32, u32) = (0x00FF_FFFF, 0x0014_181D);

impl Ink {
    /// Its colour in light surroundings.
    pub fn light(self) -> RGBColor {
        let value = INKS.iter().find(|ink| ink.0 == self).map_or(0, |ink| ink.2);
        RGBColor((value >> 16) as u8, (value >> 8) as u8, value as u8)
    }
}

/// The same figure with a class at each colour.
pub fn with_classes(svg: &str) -> String {
    INKS.iter().fold(svg.to_owned(), |svg, (_, class, light, _)| {
        svg.replace(&format!("fill=\"#{light:06X}\""), &format!("class=\"f-{class}\" fill=\"#{light:06X}\""))
            .replace(
                &format!("stroke=\"#{light:06X}\""),
                &format!("class=\"s-{class}\" stroke=\"#{light:06X}\""),
            )
    })
}

/// Rules that colour figures in dark surroundings.
fn dark_rules() -> String {
    INKS.iter().fold(String::new(), |mut rules, (_, class, _, dark)| {
        let _ = write!(rules, ".f-{class}{{fill:#{dark:06X}}}.s-{class}{{stroke:#{dark:06X}}}");
        rules
    })
}

/// The style sheet of a figure that stands alone.
pub fn figure_style() -> String {
    let (light, dark) = PAPER;
    format!(
        ".paper{{fill:#{light:06X}}}@media(prefers-color-scheme:dark){{.paper{{fill:#{dark:06X}}}{}}}",
        dark_rules()
    )
}

/// The colours of a page and of the figures in it.
pub fn page_style() -> String {
    let variables = |value: fn(&(Ink, &str, u32, u32)) -> u32, paper: u32| {
        INKS.iter().fold(format!("--paper:#{paper:06X};"), |mut rules, ink| {
            let _ = write!(rules, "--{}:#{:06X};", ink.1, value(ink));
            rules
        })
    };
    let light = variables(|ink| ink.2, PAPER.0);
    let dark = variables(|ink| ink.3, PAPER.1);
    format!(":root{{{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}{}}}\n", dark_rules())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_get_classes_and_keep_their_value() {
        let svg = with_classes("<line stroke=\"#1F5FAE\"/><text fill=\"#1B2430\">#1F5FAE</text>");
        let expected = "<line class=\"s-first\" stroke=\"#1F5FAE\"/><text class=\"f-text\" fill=\"#1B2430\">#1F5FAE</text>";
        assert_eq!(svg, expected);
    }

    #[test]
    fn every_ink_has_a_colour_of_its_own() {
        let mut colours: Vec<_> = INKS.iter().map(|ink| ink.0.light().0 as u32 * 65536 + ink.2).collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), INKS.len());
        assert!(
            page_style().contains("--first:#1F5FAE;") && figure_style().contains(".s-first{stroke:#73ADF5}")
        );
    }
}
