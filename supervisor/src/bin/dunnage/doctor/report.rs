//! Findings as text.

use serde::Serialize;

use super::judge::{Advice, Finding, Verdict};
use crate::paper::{Paper, Tone};

/// For programs: one object.
pub(super) fn json(findings: &[Finding]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        verdict: Verdict,
        findings: &'a [Finding],
    }
    let report = Report { verdict: Verdict::of(findings), findings };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

/// For people: one line for each finding, two more under one that is not ok, and the verdict last.
pub(super) fn table(findings: &[Finding], paper: Paper) -> String {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    let indent = WORD + 2 + width + 2;
    let mut text = String::new();
    for Finding { verdict, subject, found, advice } in findings {
        text += &format!("{}  {subject:width$}  {found}\n", word(*verdict, paper));
        if let Some(Advice { effect, fix }) = advice {
            text += &format!("{:indent$}fails: {effect}\n{:indent$}fix:   {fix}\n", "", "");
        }
    }
    let worst = Verdict::of(findings);
    let meaning = match worst {
        Verdict::Ok => "containers run, and nothing is missing",
        Verdict::Limited => "containers run, but not with all they may ask for",
        Verdict::Broken => "no container can run",
    };
    text + &format!("\n{}  {meaning}\n", word(worst, paper))
}

/// The letters of the longest verdict.
const WORD: usize = 7;

/// The verdict, padded.
fn word(verdict: Verdict, paper: Paper) -> String {
    let (word, tone) = match verdict {
        Verdict::Ok => ("ok", Tone::Good),
        Verdict::Limited => ("limited", Tone::Warning),
        Verdict::Broken => ("broken", Tone::Bad),
    };
    paper.paint(tone, &format!("{word:WORD$}"))
}
