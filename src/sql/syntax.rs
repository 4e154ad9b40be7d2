//! What is wrong with a statement that does not parse, and where.
//!
//! sqlparser reads some words in two ways: brackets in FROM as a sub-select or as a join, CASE as an expression or as a name.
//! Where neither does, it tells what the second one did not expect, often long before what is wrong. So a statement that
//! does not parse is looked through for such parts, each is read the first way, and what lies furthest into the text is
//! told.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use super::diagnostic::{Finding, nearest};

/// What may have been meant where sqlparser did not expect a word.
const KEYWORDS: [&str; 10] =
    ["SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "INTO", "WITH", "VALUES"];
/// What helps where one of these words comes too late.
const ORDER: &str =
    "the parts of a SELECT come in this order: FROM, WHERE, GROUP BY, HAVING, ORDER BY, LIMIT";

/// What is wrong with the statement that begins at the parser's token `start` and as a whole has that finding.
pub(super) fn blame(parser: &Parser<'_>, start: usize, whole: Finding) -> Finding {
    // Up to the semicolon and with it, so that a part is not said to end with the file.
    let mut tokens = Vec::new();
    for index in start.. {
        let token = parser.token_at(index);
        if token.token == Token::EOF {
            break;
        }
        if !matches!(token.token, Token::Whitespace(_)) {
            tokens.push(token.clone());
        }
        if token.token == Token::SemiColon {
            break;
        }
    }
    if let Some(finding) = no_select(&tokens) {
        return finding;
    }
    let furthest = parts(&tokens)
        .into_iter()
        .fold(whole, |furthest, part| if depth(&part) >= depth(&furthest) { part } else { furthest });
    misspelt(&tokens, &furthest).unwrap_or(furthest)
}

/// How far into the text a finding lies.
fn depth(finding: &Finding) -> (u64, u64) {
    let Location { line, column } = finding.at();
    if line == 0 { (u64::MAX, 0) } else { (line, column) }
}

/// Brackets in FROM that begin with what was meant as SELECT: sqlparser reads them as a join and gets further than there.
fn no_select(tokens: &[TokenWithSpan]) -> Option<Finding> {
    let is_behind = |token| matches!(keyword_of(token), Some(Keyword::FROM | Keyword::JOIN | Keyword::AS));
    tokens.windows(3).find_map(|three| {
        let [before, open, first] = three else { return None };
        let Token::Word(word) = &first.token else { return None };
        let is_meant =
            !word.value.eq_ignore_ascii_case("SELECT") && nearest(&word.value, ["SELECT"]).is_some();
        let is_refused = is_behind(before) && open.token == Token::LParen && is_meant;
        is_refused.then(|| expected(first, "SELECT").help("did you mean 'SELECT'?"))
    })
}

/// What is wrong with each sub-select and each CASE, read on its own.
fn parts(tokens: &[TokenWithSpan]) -> Vec<Finding> {
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens.to_vec());
    let mut found = Vec::new();
    for token in tokens {
        parser.advance_token();
        let selects = parser.peek_keyword(Keyword::SELECT) || parser.peek_keyword(Keyword::WITH);
        let is_case = keyword_of(token) == Some(Keyword::CASE);
        if is_case || selects && token.token == Token::LParen {
            // sqlparser goes back to where it was after an error only.
            let back: Result<(), ParserError> = parser.try_parse(|parser| {
                let read = if is_case {
                    parser.parse_case_expr().map(drop).map_err(finding_of)
                } else {
                    sub_select(parser, token)
                };
                found.extend(read.err());
                Err(ParserError::RecursionLimitExceeded)
            });
            drop(back);
        }
    }
    found
}

/// Behind that bracket.
fn sub_select(parser: &mut Parser<'_>, open: &TokenWithSpan) -> Result<(), Finding> {
    parser.parse_query().map_err(finding_of)?;
    match parser.peek_token_ref().token {
        Token::RParen => Ok(()),
        _ => Err(left_over(parser, &format!("')' for the '(' on line {}", open.span.start.line))),
    }
}

/// A misspelt word is read as a name for what stands before it, and what follows is what sqlparser did not expect. So is
/// GROUP behind a WHERE without a condition.
fn misspelt(tokens: &[TokenWithSpan], finding: &Finding) -> Option<Finding> {
    const NO_NAME_BEHIND: [Keyword; 6] =
        [Keyword::AS, Keyword::SELECT, Keyword::DISTINCT, Keyword::BY, Keyword::AND, Keyword::OR];
    let place = tokens.iter().position(|token| token.span.start == finding.at())?;
    let [.., named, name, unexpected] = tokens.get(..=place)? else { return None };
    let Token::Word(word) = &name.token else { return None };
    if keyword_of(unexpected) == Some(Keyword::BY)
        && matches!(word.keyword, Keyword::GROUP | Keyword::ORDER)
        && keyword_of(named).is_some_and(|keyword| keyword != Keyword::NoKeyword)
    {
        return Some(expected(name, &format!("something behind {named}")));
    }
    let (is_named, near) = match (&unexpected.token, keyword_of(named)) {
        (Token::SingleQuotedString(_), _) => (true, nearest(&word.value, ["INTERVAL"])),
        (_, Some(keyword)) => (!NO_NAME_BEHIND.contains(&keyword), nearest(&word.value, KEYWORDS)),
        (_, None) => (named.token == Token::RParen, nearest(&word.value, KEYWORDS)),
    };
    let near = near.filter(|near| !word.value.eq_ignore_ascii_case(near));
    let near = near.filter(|_| is_named && word.quote_style.is_none())?;
    let message = format!("'{}' is read as a name here, and {unexpected} cannot follow it", word.value);
    Some(Finding::error(name.span, message).help(format!("did you mean '{near}'?")))
}

/// What comes next where something else was expected to end.
pub(super) fn left_over(parser: &Parser<'_>, what: &str) -> Finding {
    const PARTS: [Keyword; 6] =
        [Keyword::FROM, Keyword::WHERE, Keyword::GROUP, Keyword::HAVING, Keyword::ORDER, Keyword::LIMIT];
    let [found, next] = parser.peek_tokens_ref();
    let Token::Word(word) = &found.token else { return expected(found, what) };
    if matches!(word.keyword, Keyword::GROUP | Keyword::ORDER) && keyword_of(next) != Some(Keyword::BY) {
        return expected(next, &format!("BY behind {}", word.value));
    }
    let finding = expected(found, what);
    match word.keyword {
        keyword if PARTS.contains(&keyword) => finding.help(ORDER),
        keyword
            if nearest(&word.value, KEYWORDS).is_none()
                && (keyword == Keyword::NoKeyword || matches!(next.token, Token::LParen | Token::Comma)) =>
        {
            finding.help("a comma may be missing before it")
        }
        _ => with_nearest(finding, &word.value, KEYWORDS),
    }
}

fn with_nearest<'a>(finding: Finding, found: &str, words: impl IntoIterator<Item = &'a str>) -> Finding {
    match nearest(found, words).filter(|near| !found.eq_ignore_ascii_case(near)) {
        Some(near) => finding.help(format!("did you mean '{near}'?")),
        None => finding,
    }
}

pub(super) fn expected(found: &TokenWithSpan, what: &str) -> Finding {
    let found_text = match &found.token {
        Token::EOF => "the end of the file".to_owned(),
        token => format!("'{token}'"),
    };
    Finding::error(found.span, format!("expected {what}, found {found_text}"))
}

/// None for what is no word.
pub(super) fn keyword_of(token: &TokenWithSpan) -> Option<Keyword> {
    match &token.token {
        Token::Word(word) => Some(word.keyword),
        _ => None,
    }
}

/// sqlparser writes the place into its message: `… at Line: 3, Column: 7`.
pub(super) fn finding_of(error: ParserError) -> Finding {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    let (text, start) = match message.rsplit_once(" at Line: ") {
        Some((text, place)) => {
            let parsed = place.split_once(", Column: ").and_then(|(line, column)| {
                Some(Location { line: line.trim().parse().ok()?, column: column.trim().parse().ok()? })
            });
            (text.to_owned(), parsed)
        }
        None => (message, None),
    };
    let text = text.strip_prefix("Expected: ").map_or(text.clone(), |rest| format!("expected {rest}"));
    let text = text.replace("found: EOF", "found the end of the file").replace("found: ", "found ");
    let span = start.map_or_else(Span::empty, |start| Span { start, end: start });
    let finding = Finding::error(span, text.clone());
    match text.rsplit_once("found ") {
        Some((expected, found)) => {
            // A keyword that it names itself is meant rather than another one.
            let named = expected.split(|c: char| !c.is_ascii_uppercase()).filter(|word| word.len() > 2);
            with_nearest(finding, found, KEYWORDS.into_iter().chain(named))
        }
        None => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::super::SqlFile;
    use super::super::parse::parse;

    /// The one error: its place, what is wrong, what is meant.
    #[track_caller]
    fn check(text: &str, (line, column): (u64, u64), message: &str, suggestion: Option<&str>) {
        let (_, found) = parse(text);
        let file = SqlFile { name: "a.sql".to_owned(), text: text.to_owned() };
        let [found] = <[_; 1]>::try_from(found).unwrap();
        let found = found.within(&file);
        assert_eq!((found.line, found.column, found.message.as_str()), (line, column, message), "{found}");
        assert_eq!(found.suggestion.as_deref(), suggestion, "{found}");
    }

    #[test]
    fn an_error_within_a_sub_select_is_told_at_its_place() {
        check(
            "INSERT INTO a SELECT x FROM (\n  SELECT tumble(INTERVAL '2 seconds') AS w, x FROM b\n  GROPU BY w, x\n);",
            (3, 3),
            "'GROPU' is read as a name here, and BY cannot follow it",
            Some("did you mean 'GROUP'?"),
        );
        check(
            "INSERT INTO a SELECT x FROM (\n  SELECT tumble(INTERVAL '2 seconds') AS w, count(*) AS x\n  FORM b GROUP BY w\n);",
            (3, 3),
            "expected ')' for the '(' on line 1, found 'FORM'",
            Some("did you mean 'FROM'?"),
        );
        check(
            "SELECT x FROM (\n  SELCT tumble(INTERVAL '2 seconds') AS w, x FROM b);",
            (2, 3),
            "expected SELECT, found 'SELCT'",
            Some("did you mean 'SELECT'?"),
        );
        check(
            "SELECT x FROM (\n  SELECT tumble(INTERVL '2 seconds') AS w, x FROM b);",
            (2, 17),
            "'INTERVL' is read as a name here, and '2 seconds' cannot follow it",
            Some("did you mean 'INTERVAL'?"),
        );
        check(
            "INSERT INTO a SELECT x FROM (SELECT x FROM b\n  WHERE x IN (SELECT y FROM c WHERE y > )\n);",
            (2, 41),
            "expected an expression, found )",
            None,
        );
    }

    #[test]
    fn what_is_missing_or_comes_too_late_is_told_where_it_was_expected() {
        check(
            "SELECT x FROM (\n  SELECT x FROM b GROUP BY x;\nSELECT 1 FROM b",
            (2, 29),
            "expected ')' for the '(' on line 1, found ';'",
            None,
        );
        check(
            "SELECT x FROM (\n  SELECT x FROM b ORDER BY x\n  GROUP BY x);",
            (3, 3),
            "expected ')' for the '(' on line 1, found 'GROUP'",
            Some(super::ORDER),
        );
        check(
            "SELECT x FROM b WHERE GROUP BY x;",
            (1, 23),
            "expected something behind WHERE, found 'GROUP'",
            None,
        );
        check(
            "SELECT x y count(*) FROM b;",
            (1, 12),
            "expected a semicolon or the end of the file, found 'count'",
            Some("a comma may be missing before it"),
        );
        check("SELECT x FROM b GROUP x;", (1, 23), "expected BY behind GROUP, found 'x'", None);
        check(
            "SELECT x,\n  CASE WHEN x > 1000 THEN x / 1000 ELSE 1 AS scaled\nFROM (SELECT x FROM b);",
            (2, 43),
            "expected END, found AS",
            None,
        );
        check(
            "SELECT CASE WHEN x > 1 THN x END FROM b;",
            (1, 24),
            "expected THEN, found THN",
            Some("did you mean 'THEN'?"),
        );
    }

    #[test]
    fn a_name_that_resembles_a_keyword_stays_a_name() {
        check(
            "SELECT x AS form y FROM b;",
            (1, 18),
            "expected a semicolon or the end of the file, found 'y'",
            Some("a comma may be missing before it"),
        );
        check(
            "SELECT x FROM b \"form\" y;",
            (1, 24),
            "expected a semicolon or the end of the file, found 'y'",
            Some("a comma may be missing before it"),
        );
    }

    #[test]
    fn what_would_be_read_again_and_again_is_refused_at_once() {
        for nested in ["CASE WHEN x.end THEN ", "tumble(INTERVAL "] {
            let text = format!("SELECT {} 1 FROM b", nested.repeat(40));
            let (_, found) = parse(&text);
            let file = SqlFile { name: "a.sql".to_owned(), text };
            let said = found[0].clone().within(&file).message;
            assert_eq!(said, "the statement is nested too deeply", "{nested}");
        }
        let cases = format!("SELECT {} 1 FROM b", "CASE WHEN x.end THEN 1 END + ".repeat(40));
        assert_eq!(parse(&cases).1, []);
        let nested = format!("SELECT {}1{} FROM b", "CASE WHEN x THEN ".repeat(10), " END".repeat(10));
        assert_eq!(parse(&nested).1, []);
    }
}
