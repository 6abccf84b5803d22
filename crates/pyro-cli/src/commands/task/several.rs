//! The same operation on several tasks: each is tried, and each is reported.

use pyro_engine::Error;
use serde::Serialize;

use super::subject::TaskIdsArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::reply::Reply;
use crate::report::{JsonReport, Report};
use crate::session;

/// What became of one of several tasks, in the document of `--json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome<'a, T> {
    Done(&'a T),
    Failed {
        /// The text that named the task.
        task_id: &'a str,
        #[serde(flatten)]
        report: JsonReport<'a>,
    },
}

/// Does `operation` to each task, one after another. With one task, the reply is that of a command on one task; with several,
/// it fails at the end if one of them failed, with the status of the worst failure: an error in a name is the least.
pub(super) fn each<T: Serialize>(
    args: &TaskIdsArgs,
    operation: impl AsyncFn(&str) -> Result<T, Error>,
    text: impl Fn(&T) -> String,
) -> Result<Reply, CliError> {
    let TaskIdsArgs { task_ids, json } = args;
    if let [only] = task_ids.as_slice() {
        let done = session::block_on(operation(only))?;
        return Ok(Reply::of(*json, &done, text)?);
    }
    let ended = session::block_on(async {
        let mut ended = Vec::new();
        for id in task_ids {
            ended.push((id, operation(id).await.map_err(CliError::Engine)));
        }
        Ok::<_, Error>(ended)
    })?;
    let failures: Vec<Exit> =
        ended.iter().filter_map(|(_, result)| result.as_ref().err()).map(CliError::exit).collect();
    let exit = match failures.as_slice() {
        [] => Exit::Success,
        failures if failures.iter().all(|exit| *exit == Exit::Usage) => Exit::Usage,
        _ => Exit::Failure,
    };
    let reports = ended.iter().map(|(id, result)| match result {
        Ok(done) => (*id, Ok(done)),
        Err(error) => (*id, Err(Report::of(error))),
    });
    let reports: Vec<_> = reports.collect();
    if *json {
        let outcomes: Vec<Outcome<'_, T>> = reports
            .iter()
            .filter_map(|(id, result)| match result {
                Ok(done) => Some(Outcome::Done(*done)),
                Err(report) => Some(Outcome::Failed { task_id: id, report: report.as_ref()?.json() }),
            })
            .collect();
        return Ok(Reply::document(&outcomes)?.exit(exit));
    }
    let shown: String =
        reports.iter().filter_map(|(_, result)| result.as_ref().ok()).map(|done| text(done)).collect();
    let failures = reports.iter().filter_map(|(_, result)| result.as_ref().err()?.as_ref());
    Ok(failures.fold(Reply::text(shown), |reply, report| reply.note(report.human().trim_end())).exit(exit))
}

#[cfg(test)]
mod tests {
    use pyro_engine::ErrorKind;

    use super::*;
    use crate::reply::Content;

    fn ids(json: bool, ids: &[&str]) -> TaskIdsArgs {
        TaskIdsArgs { task_ids: ids.iter().map(ToString::to_string).collect(), json }
    }

    async fn operation(id: &str) -> Result<String, Error> {
        match id {
            "bad" => Err(Error::not_found(pyro_engine::Kind::Task, id)),
            "ambiguous" => Err(Error::new(ErrorKind::InvalidInput, id)),
            id => Ok(id.to_owned()),
        }
    }

    #[test]
    fn all_are_tried_and_one_failure_is_the_exit_status() {
        let reply = each(&ids(false, &["a", "bad", "b"]), operation, |id| format!("Did: {id}\n")).unwrap();
        let Content::Text(text) = reply.result else { panic!("no text") };
        assert_eq!((text.as_str(), reply.exit), ("Did: a\nDid: b\n", Exit::Failure));
        insta::assert_snapshot!(reply.notes.join("\n"), @r"
        [error] task 'bad' does not exist
          hint: run `pyro task list` to see the tasks that exist
        ");
        let reply = each(&ids(true, &["a", "bad"]), operation, |_| String::new()).unwrap();
        let Content::Bytes(document) = reply.result else { panic!("no document") };
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document[0], "a");
        assert_eq!((&document[1]["task_id"], &document[1]["kind"]), (&"bad".into(), &"not_found".into()));
        assert_eq!(reply.exit, Exit::Failure);
        for (words, exit) in [
            (["a", "ambiguous"], Exit::Usage),
            (["bad", "ambiguous"], Exit::Failure),
            (["a", "b"], Exit::Success),
        ] {
            assert_eq!(
                each(&ids(false, &words), operation, |_| String::new()).unwrap().exit,
                exit,
                "{words:?}"
            );
        }
    }

    #[test]
    fn one_task_is_reported_as_ever() {
        let reply = each(&ids(true, &["a"]), operation, |_| String::new()).unwrap();
        let Content::Bytes(document) = reply.result else { panic!("no document") };
        assert_eq!(document, b"\"a\"\n");
        let failed = each(&ids(true, &["bad"]), operation, |_| String::new());
        assert!(matches!(failed, Err(CliError::Engine(error)) if error.kind == ErrorKind::NotFound));
    }
}
