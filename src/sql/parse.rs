//! Text → statements: sqlparser, and `CREATE TABLE` with what the dialect adds to it.
//!
//! `WATERMARK FOR` stands among the columns, where stock sqlparser expects a column, so `CREATE TABLE` is read here
//! with sqlparser's own token-level methods; each part keeps its place in the text for the catalog's findings.

use datafusion::sql::sqlparser::ast::{DataType, Expr, Ident, Statement as SqlStatement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer};

use super::diagnostic::{Finding, nearest};
use super::syntax::{self, expected, finding_of, keyword_of};

/// A statement and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) at: Span,
    pub(crate) kind: StatementKind,
}

#[derive(Clone, Debug)]
pub(crate) enum StatementKind {
    CreateTable(CreateTable),
    /// A `CREATE` that could not be read: the name is known, so that what reads it is not called unknown.
    Broken(String),
    Other(Box<SqlStatement>),
}

/// `CREATE TABLE name (columns, watermark) WITH (options)`, as written.
#[derive(Clone, Debug)]
pub(crate) struct CreateTable {
    pub(crate) name: Ident,
    pub(crate) columns: Vec<ColumnDecl>,
    pub(crate) watermarks: Vec<WatermarkDecl>,
    pub(crate) options: Vec<OptionDecl>,
}

/// One column as written.
#[derive(Clone, Debug)]
pub(crate) struct ColumnDecl {
    pub(crate) name: Ident,
    pub(crate) data_type: DataType,
    pub(crate) type_at: Span,
    pub(crate) not_null: bool,
    pub(crate) default: Option<(Expr, Span)>,
    /// `GENERATED ALWAYS AS (expr) [STORED]`
    pub(crate) generated: Option<(Expr, Span)>,
    /// `METADATA FROM 'name'`
    pub(crate) metadata: Option<(String, Span)>,
}

/// `WATERMARK FOR column [AS (expr)]` as written.
#[derive(Clone, Debug)]
pub(crate) struct WatermarkDecl {
    pub(crate) at: Span,
    pub(crate) column: Ident,
    pub(crate) expr: Option<(Expr, Span)>,
}

/// `key = value` in `WITH (…)`.
#[derive(Clone, Debug)]
pub(crate) struct OptionDecl {
    pub(crate) key: Ident,
    pub(crate) value: String,
    pub(crate) value_at: Span,
}

/// All statements of a text. After an error, reading goes on behind the next semicolon, so that one run names as many
/// errors as it can.
pub(crate) fn parse(text: &str) -> (Vec<Statement>, Vec<Finding>) {
    let dialect = GenericDialect {};
    let mut statements = Vec::new();
    let mut findings = Vec::new();
    let tokens = match Tokenizer::new(&dialect, text).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => return (statements, vec![finding_of(error.into())]),
    };
    if let Some(finding) = too_deep(&tokens).or_else(|| read_too_often(&tokens)) {
        return (statements, vec![finding]);
    }
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    loop {
        while parser.consume_token(&Token::SemiColon) {}
        let first = parser.peek_token();
        if first.token == Token::EOF {
            return (statements, findings);
        }
        let start = parser.index();
        let created = created_name(&parser);
        match statement(&mut parser, &first) {
            Ok(kind) => statements.push(Statement { at: first.span, kind }),
            Err(finding) => {
                findings.push(finding);
                let broken = created.map(StatementKind::Broken);
                statements.extend(broken.map(|kind| Statement { at: first.span, kind }));
                skip_statement(&mut parser, start);
            }
        }
    }
}

/// Where a text nests deeper than the parser and the planner have stack or time for. Operators in a row make a tree as deep
/// as the row is long; an INTERVAL of an INTERVAL, a type in a type are followed as deep as they go; and intervals, brackets
/// in brackets and sub-selects are read twice at each level, so that time doubles with each. All other nesting sqlparser
/// limits itself.
fn too_deep(tokens: &[TokenWithSpan]) -> Option<Finding> {
    const OPERATORS: usize = 500;
    const INTERVALS: usize = 4;
    const TYPES: usize = 16;
    const SELECTS: usize = 12;
    let refuse = |at: &TokenWithSpan, message: &str| Some(Finding::error(at.span, message));
    let mut intervals = 0;
    let mut types = 0;
    // By open bracket: operators since the last comma; and whether a bracket or a sub-select comes at once.
    let mut operators = vec![0];
    let mut selects = vec![false];
    let mut tokens = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).peekable();
    while let Some(token) = tokens.next() {
        let keyword = keyword_of(token);
        let opens = matches!(tokens.peek().map(|next| &next.token), Some(Token::Lt | Token::LParen));
        let selecting = tokens.peek().is_some_and(|next| {
            next.token == Token::LParen || matches!(keyword_of(next), Some(Keyword::SELECT | Keyword::WITH))
        });
        intervals = if keyword == Some(Keyword::INTERVAL) { intervals + 1 } else { 0 };
        types = match (&token.token, keyword) {
            (_, Some(keyword)) if keyword != Keyword::NoKeyword && opens => types + 1,
            // A field's name stands within a STRUCT.
            (Token::Lt | Token::LParen, _) | (_, Some(Keyword::NoKeyword)) => types,
            _ => 0,
        };
        match &token.token {
            Token::LParen => {
                operators.push(0);
                selects.push(selecting);
            }
            Token::RParen if operators.len() > 1 => drop((operators.pop(), selects.pop())),
            Token::Comma | Token::SemiColon => {
                operators.iter_mut().rev().take(1).for_each(|count| *count = 0)
            }
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Period => {}
            _ if matches!(keyword, None | Some(Keyword::AND | Keyword::OR)) => {
                operators.iter_mut().rev().take(1).for_each(|count| *count += 1);
            }
            _ => {}
        }
        let deep = selects.iter().filter(|selecting| **selecting).count();
        if intervals > INTERVALS || types > TYPES || deep > SELECTS {
            return refuse(token, "the statement is nested too deeply");
        }
        if operators.last().is_some_and(|count| *count > OPERATORS) {
            let finding = refuse(token, "more than 500 operators in a row");
            return finding
                .map(|finding| finding.help("write IN (…), or compute parts of it in a sub-select"));
        }
    }
    None
}

/// Where INTERVALs stand in INTERVALs' brackets, or CASEs in CASEs, so deep that the parser has no time for it: where what is
/// within one of them does not parse, it is read again, so that time doubles with each.
fn read_too_often(tokens: &[TokenWithSpan]) -> Option<Finding> {
    const INTERVALS: usize = 8;
    const CASES: usize = 12;
    const NO_VALUE: [Keyword; 7] =
        [Keyword::CASE, Keyword::WHEN, Keyword::THEN, Keyword::ELSE, Keyword::AND, Keyword::OR, Keyword::NOT];
    let mut cases = 0_usize;
    // By open bracket: whether an INTERVAL stands before it in the same item.
    let mut intervals = vec![false];
    let mut is_behind_value = false;
    for token in tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))) {
        let keyword = keyword_of(token);
        match (&token.token, keyword) {
            (Token::LParen, _) => intervals.push(false),
            (Token::RParen, _) if intervals.len() > 1 => drop(intervals.pop()),
            (Token::SemiColon, _) => (cases, intervals) = (0, vec![false]),
            (Token::Comma, _) | (_, Some(Keyword::FROM | Keyword::INTERVAL)) => {
                let is_interval = keyword == Some(Keyword::INTERVAL);
                intervals.iter_mut().rev().take(1).for_each(|interval| *interval = is_interval);
            }
            (_, Some(Keyword::CASE)) => cases += 1,
            // Elsewhere it is a name: `window.end`.
            (_, Some(Keyword::END)) if is_behind_value => cases = cases.saturating_sub(1),
            _ => {}
        }
        let deep = intervals.iter().filter(|interval| **interval).count();
        if cases > CASES || deep > INTERVALS {
            return Some(Finding::error(token.span, "the statement is nested too deeply"));
        }
        is_behind_value = match keyword {
            Some(keyword) => !NO_VALUE.contains(&keyword),
            None => matches!(token.token, Token::RParen | Token::Number(..) | Token::SingleQuotedString(_)),
        };
    }
    None
}

/// Goes behind the next semicolon, unless the statement was given up at it.
fn skip_statement(parser: &mut Parser<'_>, start: usize) {
    let at_semicolon = parser.index() > start && parser.get_current_token().token == Token::SemiColon;
    if !at_semicolon {
        while !matches!(parser.next_token().token, Token::SemiColon | Token::EOF) {}
    }
}

/// The name in `CREATE TABLE name` or `CREATE VIEW name`.
fn created_name(parser: &Parser<'_>) -> Option<String> {
    let [create, what, name] = parser.peek_tokens_ref();
    let keyword = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) => Some(word.keyword),
        _ => None,
    };
    let creates = keyword(create) == Some(Keyword::CREATE)
        && matches!(keyword(what), Some(Keyword::TABLE | Keyword::VIEW));
    match &name.token {
        Token::Word(word) if creates => Some(super::catalog::normalized(&word.to_ident(name.span))),
        _ => None,
    }
}

type Parsed<T> = Result<T, Finding>;

fn statement(parser: &mut Parser<'_>, first: &TokenWithSpan) -> Parsed<StatementKind> {
    if parser.peek_keyword(Keyword::CREATE) && creates_table(parser) {
        let table = create_table(parser)?;
        return ended(parser).map(|()| StatementKind::CreateTable(table));
    }
    check_first_word(first)?;
    let start = parser.index();
    let parsed = parser.parse_statement().map_err(finding_of);
    let parsed = parsed.and_then(|statement| ended(parser).map(|()| statement));
    match parsed {
        Ok(statement) => Ok(StatementKind::Other(Box::new(statement))),
        Err(finding) => Err(syntax::blame(parser, start, finding)),
    }
}

/// A statement ends here.
fn ended(parser: &Parser<'_>) -> Parsed<()> {
    match parser.peek_token_ref().token {
        Token::SemiColon | Token::EOF => Ok(()),
        _ => Err(syntax::left_over(parser, "a semicolon or the end of the file")),
    }
}

/// Names the statements there are, with the nearest one: sqlparser says only "an SQL statement".
fn check_first_word(first: &TokenWithSpan) -> Parsed<()> {
    match &first.token {
        Token::Word(word) if word.keyword == Keyword::NoKeyword => {
            let finding = Finding::error(first.span, format!("'{}' begins no statement", word.value));
            Err(finding.help_nearest(
                &word.value,
                "statements begin with",
                ["CREATE", "INSERT", "SELECT", "WITH"],
            ))
        }
        Token::Word(_) | Token::LParen => Ok(()),
        _ => Err(expected(first, "CREATE TABLE, CREATE VIEW or INSERT INTO")),
    }
}

fn creates_table(parser: &Parser<'_>) -> bool {
    let [_, second] = parser.peek_tokens_ref();
    matches!(&second.token, Token::Word(word) if word.keyword == Keyword::TABLE)
}

fn create_table(parser: &mut Parser<'_>) -> Parsed<CreateTable> {
    parser.expect_keywords(&[Keyword::CREATE, Keyword::TABLE]).map_err(finding_of)?;
    let name = identifier(parser, "a table name")?;
    let mut table = CreateTable { name, columns: vec![], watermarks: vec![], options: vec![] };
    if !parser.peek_keyword(Keyword::WITH) {
        table_columns(parser, &mut table)?;
    }
    let next = parser.peek_token();
    if parser.parse_keyword(Keyword::WITH) {
        table.options = options(parser)?;
    } else {
        return Err(expected(&next, "WITH (connector = …, type = …)"));
    }
    Ok(table)
}

/// `(columns, watermark)`
fn table_columns(parser: &mut Parser<'_>, table: &mut CreateTable) -> Parsed<()> {
    let open = parser.peek_token();
    if !parser.consume_token(&Token::LParen) {
        return Err(expected(&open, "'(' and the table's columns"));
    }
    loop {
        let at = parser.peek_token();
        if is_watermark(parser)? {
            table.watermarks.push(watermark(parser, at.span)?);
        } else {
            table.columns.push(column(parser)?);
        }
        let next = parser.next_token();
        match next.token {
            Token::Comma => {}
            Token::RParen => return Ok(()),
            _ => return Err(expected(&next, "',' or ')' after a column, NOT NULL, or DEFAULT")),
        }
    }
}

/// Whether `WATERMARK FOR` comes next. No column can have a type named FOR, so a near miss is one too.
fn is_watermark(parser: &Parser<'_>) -> Parsed<bool> {
    let [first, second] = parser.peek_tokens_ref();
    let (Token::Word(word), Token::Word(next)) = (&first.token, &second.token) else { return Ok(false) };
    if next.keyword != Keyword::FOR || word.quote_style.is_some() {
        return Ok(false);
    }
    if word.value.eq_ignore_ascii_case("watermark") {
        return Ok(true);
    }
    let finding =
        Finding::error(first.span, format!("'{} FOR' is neither a column nor a watermark", word.value));
    Err(match nearest(&word.value, ["WATERMARK"]) {
        Some(near) => finding.help(format!("did you mean '{near} FOR'?")),
        None => finding
            .help("write 'name TYPE' or 'WATERMARK FOR column AS (column - INTERVAL '500 milliseconds')'"),
    })
}

fn watermark(parser: &mut Parser<'_>, at: Span) -> Parsed<WatermarkDecl> {
    parser.advance_token();
    parser.advance_token();
    let column = identifier(parser, "the event-time column")?;
    let expr = if parser.parse_keyword(Keyword::AS) {
        let open = parser.peek_token();
        if !parser.consume_token(&Token::LParen) {
            return Err(expected(&open, "'(' and the watermark's expression"));
        }
        let start = parser.peek_token().span;
        let expr = parser.parse_expr().map_err(finding_of)?;
        parser.expect_token(&Token::RParen).map_err(finding_of)?;
        Some((expr, start))
    } else {
        None
    };
    Ok(WatermarkDecl { at, column, expr })
}

fn column(parser: &mut Parser<'_>) -> Parsed<ColumnDecl> {
    let name = identifier(parser, "a column name or WATERMARK FOR")?;
    let type_token = parser.peek_token();
    if !matches!(type_token.token, Token::Word(_)) {
        return Err(expected(&type_token, "the column's type"));
    }
    let data_type = parser.parse_data_type().map_err(finding_of)?;
    let mut column = ColumnDecl {
        name,
        data_type,
        type_at: type_token.span,
        not_null: false,
        default: None,
        generated: None,
        metadata: None,
    };
    while column_option(parser, &mut column)? {}
    Ok(column)
}

/// Reads one option behind a column's type; false when there is none.
fn column_option(parser: &mut Parser<'_>, column: &mut ColumnDecl) -> Parsed<bool> {
    let at = parser.peek_token();
    let Token::Word(word) = &at.token else { return Ok(false) };
    if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) {
        column.not_null = true;
    } else if parser.parse_keyword(Keyword::NOT) {
        return Err(expected(&parser.peek_token(), "NULL behind NOT"));
    } else if parser.parse_keyword(Keyword::NULL) {
        column.not_null = false;
    } else if parser.parse_keyword(Keyword::DEFAULT) {
        let start = parser.peek_token().span;
        // Without operators: `DEFAULT 'x' NOT NULL` would otherwise read as `'x' IS NOT NULL`.
        let value = parser.parse_prefix().map_err(finding_of)?;
        column.default = Some((value, start));
    } else if word.value.eq_ignore_ascii_case("metadata") {
        parser.advance_token();
        if !parser.parse_keyword(Keyword::FROM) {
            return Err(expected(&parser.peek_token(), "FROM and the metadata's name in quotes"));
        }
        let at = parser.peek_token().span;
        column.metadata = Some((parser.parse_literal_string().map_err(finding_of)?, at));
    } else if parser.parse_keyword(Keyword::GENERATED) {
        column.generated = Some(generated(parser)?);
    } else {
        let options = ["NOT NULL", "DEFAULT", "METADATA FROM", "GENERATED ALWAYS AS"];
        let finding = Finding::error(at.span, format!("unknown column option '{}'", word.value));
        return Err(finding.help_nearest(&word.value, "column options", options));
    }
    Ok(true)
}

/// Behind the word GENERATED. STORED or not is the same here: the value is computed when the row is read.
fn generated(parser: &mut Parser<'_>) -> Parsed<(Expr, Span)> {
    parser.expect_keywords(&[Keyword::ALWAYS, Keyword::AS]).map_err(finding_of)?;
    parser.expect_token(&Token::LParen).map_err(finding_of)?;
    let at = parser.peek_token().span;
    let expr = parser.parse_expr().map_err(finding_of)?;
    parser.expect_token(&Token::RParen).map_err(finding_of)?;
    let _stored = parser.parse_keyword(Keyword::STORED);
    Ok((expr, at))
}

/// `200 milliseconds` as the literal `INTERVAL '200 milliseconds'`; `None` for what does not even look like one.
pub(crate) fn parse_interval(text: &str) -> Option<Expr> {
    if text.contains('\'') {
        return None;
    }
    Parser::new(&GenericDialect {}).try_with_sql(&format!("INTERVAL '{text}'")).ok()?.parse_expr().ok()
}

fn options(parser: &mut Parser<'_>) -> Parsed<Vec<OptionDecl>> {
    let open = parser.peek_token();
    if !parser.consume_token(&Token::LParen) {
        return Err(expected(&open, "'(' and the table's options"));
    }
    let mut options = Vec::new();
    loop {
        let key = identifier(parser, "an option's name")?;
        let equals = parser.next_token();
        if equals.token != Token::Eq {
            return Err(expected(&equals, "'=' and the option's value"));
        }
        let value = parser.next_token();
        match &value.token {
            Token::SingleQuotedString(text) => {
                options.push(OptionDecl { key, value: text.clone(), value_at: value.span });
            }
            found => {
                let finding = expected(&value, "the option's value as text in single quotes");
                return Err(finding.help(format!("write '{}'", found.to_string().replace('"', ""))));
            }
        }
        let next = parser.next_token();
        match next.token {
            Token::Comma => {}
            Token::RParen => return Ok(options),
            _ => return Err(expected(&next, "',' or ')' after an option")),
        }
    }
}

/// A name, with its place: sqlparser drops the place of a quoted one.
fn identifier(parser: &mut Parser<'_>, what: &str) -> Parsed<Ident> {
    let token = parser.peek_token();
    match token.token {
        Token::Word(_) | Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) => {
            let mut ident = parser.parse_identifier().map_err(finding_of)?;
            ident.span = token.span;
            Ok(ident)
        }
        _ => Err(expected(&token, what)),
    }
}
