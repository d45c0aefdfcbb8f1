//! The terminal, or whatever stderr is instead.
//!
//! On a terminal a bar keeps the last line and everything else is printed above it; elsewhere (a file, a pipe, CI)
//! there are only lines. Rank 0 owns it; other ranks' lines reach stderr through the launcher.

use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::{IsTerminal, Write};

/// Where progress is shown.
pub enum Screen {
    /// A terminal.
    Terminal(ProgressBar),
    /// Anything else.
    Lines(Box<dyn Write>),
}

/// Whether text is set off by colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// Text that stands back.
    pub fn dim(self, text: &str) -> String {
        self.styled("2", text)
    }

    /// Text that stands out.
    pub fn bold(self, text: &str) -> String {
        self.styled("1", text)
    }

    fn styled(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Screen {
    /// Stderr as it is.
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb") {
            Self::terminal(ProgressDrawTarget::stderr())
        } else {
            Self::Lines(Box::new(std::io::stderr()))
        }
    }

    /// A bar on `target`, not drawn before it is first told something.
    pub fn terminal(target: ProgressDrawTarget) -> Self {
        Self::Terminal(ProgressBar::with_draw_target(None, target))
    }

    /// Colours on a terminal, unless the variable NO_COLOR asks for none (no-color.org).
    pub fn paint(&self) -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint(matches!(self, Self::Terminal(_)) && !refused)
    }

    /// Prints `text`, of one or more lines, above the bar if there is one. A failure to print is ignored: nobody is
    /// left to tell.
    pub fn say(&mut self, text: &str) {
        match self {
            Self::Terminal(bar) => bar.println(text),
            Self::Lines(out) => drop(out.write_all(format!("{text}\n").as_bytes())),
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Self::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
pub mod fake {
    //! Screens that remember.

    use super::Screen;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io::{Result, Write};
    use std::sync::{Arc, Mutex};

    /// All that was ever written, as text.
    #[derive(Debug, Clone, Default)]
    pub struct Memory(Arc<Mutex<String>>);

    impl Memory {
        /// What was written so far.
        pub fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        /// A screen of lines that writes here.
        pub fn lines(&self) -> Screen {
            Screen::Lines(Box::new(self.clone()))
        }

        /// A terminal of 120 columns that writes here, however often it is drawn.
        pub fn terminal(&self) -> Screen {
            Screen::terminal(ProgressDrawTarget::term_like(Box::new(self.clone())))
        }

        fn push(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.push(std::str::from_utf8(bytes).unwrap())?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl TermLike for Memory {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> Result<()> {
            self.push(&format!("{text}\n"))
        }

        fn write_str(&self, text: &str) -> Result<()> {
            self.push(text)
        }

        fn clear_line(&self) -> Result<()> {
            Ok(())
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }
}
