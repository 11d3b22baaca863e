//! How a table is laid out, whatever stands in it.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Error, data, lines};
use crate::client::visible::visible;

/// How stdout is to be written to.
pub(super) struct Shape {
    /// In columns, on a terminal.
    pub(super) width: Option<usize>,
    pub(super) colour: bool,
}

impl Shape {
    pub(super) fn of_stdout() -> Self {
        Self {
            width: width_of_stdout(),
            colour: AutoStream::choice(&io::stdout()) != ColorChoice::Never,
        }
    }
}

/// Columns that are cut where the terminal is too narrow, along with the last.
const SHRINKING: [&str; 3] = ["REASON", "NAME", "WORKER"];

/// What shrinks keeps so much at first, in columns of the terminal.
const SHRUNK: usize = 20;

/// And so much in the end.
const LEAST: usize = 8;

/// Between two columns.
pub(super) const GAP: usize = 2;

/// A cell of a table; its text is safe to show.
pub(super) struct Cell {
    text: String,
    style: Style,
}

/// The columns of the terminal on stdout, if it is one.
fn width_of_stdout() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

pub(super) fn table(
    shape: &Shape,
    header: &[&str],
    headers: bool,
    rows: Vec<Vec<Cell>>,
) -> Result<(), Error> {
    Ok(data(&laid_out(shape, header, headers, rows))?)
}

/// A table without lines, which both people and `awk` can read. On a terminal
/// the last column is cut to fit, then reasons and names; where that is not
/// enough, nothing is.
pub(super) fn laid_out(
    shape: &Shape,
    header: &[&str],
    headers: bool,
    mut rows: Vec<Vec<Cell>>,
) -> String {
    if rows.is_empty() {
        return String::new();
    }
    if headers {
        rows.insert(0, header.iter().map(cell).collect());
    }
    let natural = (0..header.len()).map(|column| {
        let widths = rows
            .iter()
            .filter_map(|row| Some(row.get(column)?.text.width()));
        widths.max().unwrap_or_default()
    });
    let natural: Vec<usize> = natural.collect();
    let fitted = shape
        .width
        .and_then(|width| fitted(header, &natural, width));
    let widths = fitted.unwrap_or(natural);
    lines(rows.iter().map(|row| {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in row.iter().zip(&widths) {
            let text = cut(&cell.text, *width);
            let style = match shape.colour {
                true => cell.style,
                false => Style::new(),
            };
            write!(line, "{:gap$}{style}{text}{style:#}", "").unwrap_or_default();
            gap = width + GAP - text.width();
        }
        line
    }))
}

/// The widths of the columns where the table is to fit into `width`; `None`
/// where it cannot.
fn fitted(header: &[&str], natural: &[usize], width: usize) -> Option<Vec<usize>> {
    let mut widths = natural.to_vec();
    let last = widths.len().checked_sub(1)?;
    let room = width.checked_sub(GAP * last)?;
    let named = |name| header.iter().position(|column| *column == name);
    let shrinking: Vec<usize> = SHRINKING.into_iter().filter_map(named).collect();
    let least = shrinking.iter().map(|column| (*column, LEAST));
    let first = shrinking.iter().map(|column| (*column, SHRUNK));
    for (column, least) in [(last, SHRUNK)]
        .into_iter()
        .chain(first)
        .chain([(last, LEAST)])
        .chain(least)
    {
        let surplus = widths.iter().sum::<usize>().saturating_sub(room);
        widths[column] -= surplus.min(widths[column].saturating_sub(least));
    }
    (widths.iter().sum::<usize>() <= room).then_some(widths)
}

/// `text`, with its end replaced by `…` where it is wider than `width`.
pub(super) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut room = width.saturating_sub(1);
    let kept = text.chars().take_while(|c| {
        let width = c.width().unwrap_or_default();
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    });
    Cow::Owned(kept.chain(['…']).collect())
}

pub(super) fn cell(text: impl fmt::Display) -> Cell {
    styled(text, None)
}

pub(super) fn styled(text: impl fmt::Display, colour: Option<AnsiColor>) -> Cell {
    let text = text.to_string();
    Cell {
        text: match text.is_empty() {
            true => "-".to_owned(),
            false => visible(&text).into_owned(),
        },
        style: colour.map_or(Style::new(), AnsiColor::on_default),
    }
}

pub(super) fn cell_or(text: Option<impl fmt::Display>) -> Cell {
    text.map_or_else(|| cell("-"), cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_are_cut_by_the_columns_they_take() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
    }
}
