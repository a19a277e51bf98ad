//! After a start: which shims live, what those that do not live had still to tell, and what was left half done.
//!
//! Only what clients could stumble over is done before the first is served: to find a thousand shims takes no question to
//! any of them. The rest goes on beside.

use std::{collections::HashSet, fs, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use libcontainer::state::Init;
use runtime_v2_api::supervisor::Phase;
use tokio::time::sleep;

use crate::{
    attend::Attended,
    book::{Name, Stage},
    fault::Fault,
    ground::{AT_ONCE, Ground},
    sys,
};

/// Between two attempts to clean up after a shim, of which something, such as a full disk, tells nobody when it is over.
const PAUSE: Duration = Duration::from_secs(5);

/// A shim as it is called in `unheard/`.
fn source(text: &str) -> Option<Init> {
    let (pid, start_time) = text.split_once('-')?;
    Some(Init { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
}

/// Whether the shim of that name may still send an event, itself or by the file that it has left.
pub(crate) fn may_send(unheard: &std::path::Path, text: &str) -> bool {
    let lives = source(text).is_some_and(|shim| !matches!(shim.open(), Ok(None)));
    lives || unheard.join(text).exists()
}

/// Finds the shims of the book again, and has what is left of the others cleaned up.
pub(crate) fn recover(ground: &Arc<Ground>) -> io::Result<()> {
    let (mut alive, mut over) = (Vec::new(), Vec::new());
    let last = ground.relay.last();
    for name in ground.book.names() {
        // Somebody has removed the journal, and its numbers begin anew.
        if ground.book.look(&name, |entry| entry.after > last) == Some(true) {
            ground.book.change(&name, |entry| entry.after = last)?;
        }
        let found = ground
            .book
            .look(&name, |entry| (entry.stage.clone(), entry.shim, entry.address.clone(), entry.auto_remove));
        let Some((stage, shim, address, auto_remove)) = found else { continue };
        if matches!(stage, Stage::Lost(_)) {
            if auto_remove {
                finish(ground, name);
            }
            continue;
        }
        let pidfd: Option<OwnedFd> = match shim.map(Init::open).transpose() {
            Ok(pidfd) => pidfd.flatten(),
            Err(failed) => return Err(io::Error::other(format!("find the shim of container {name}: {failed}"))),
        };
        let lives = pidfd.is_some();
        if let Some(pidfd) = pidfd {
            ground.shims.add(&name, &address);
            ground.shims.watch(&name, pidfd)?;
        }
        if lives && stage == Stage::Live { &mut alive } else { &mut over }.push(name);
    }
    log::info!("found {} shims; {} containers are to be cleaned up after", alive.len(), over.len());
    // The last by all: killed between an event's way into the journal and its way into the book, the book lacks it.
    let after = ground.relay.last().saturating_sub(1);
    hear_again(ground, &over, after)?;
    import_orphans(ground)?;
    // Those whose end was heard of, and not what was to follow.
    for name in &alive {
        finish_ended(ground, name.clone());
    }
    for name in over {
        finish(ground, name);
    }
    ground.book.ask(alive.len());
    tokio::spawn(ask_all(ground.clone(), alive));
    Ok(())
}

/// Enters into the book what the journal says of these containers, and of all others after that number: where the disk was
/// full, events are in the journal alone.
fn hear_again(ground: &Ground, these: &[Arc<Name>], others: u64) -> io::Result<()> {
    let after = these
        .iter()
        .filter_map(|name| ground.book.look(name, |entry| (!entry.deleted).then_some(entry.after)).flatten());
    let after = after.chain([others]).min().unwrap_or(others);
    let these: HashSet<&Name> = these.iter().map(AsRef::as_ref).collect();
    ground.relay.replay(after, |number, envelope| {
        ground.book.heard_again(number, envelope, |name| number > others || these.contains(name));
    })
}

/// Events of shims that are gone, and of which perhaps not even the book knows.
fn import_orphans(ground: &Ground) -> io::Result<()> {
    for file in fs::read_dir(ground.places().unheard())? {
        let file = file?;
        let Some(shim) = file.file_name().to_str().and_then(source) else { continue };
        if matches!(shim.open(), Ok(None))
            && let Err(error) = ground.import(&shim)
        {
            // Of a container in the book it is tried again, and until then nothing is made up for it.
            log::warn!("take the events that the shim {} has left: {error}", shim.pid);
        }
    }
    Ok(())
}

/// The shim of a container has gone. What is being launched or removed knows what to do itself.
pub(crate) fn finish_lost(ground: &Arc<Ground>, name: Arc<Name>) {
    if ground.book.look(&name, |entry| entry.stage == Stage::Live) == Some(true) {
        log::warn!("the shim of container {name} has ended");
        finish(ground, name);
    }
}

/// Removes a container that has ended, if that is all that kept it.
pub(crate) fn finish_ended(ground: &Arc<Ground>, name: Arc<Name>) {
    let over = ground.book.look(&name, |entry| entry.auto_remove && entry.exit.is_some() && entry.stage == Stage::Live);
    if over == Some(true) {
        finish(ground, name);
    }
}

/// Goes on with a container's way out for as long as it takes. One that is to be removed is kept for a client that stays
/// with it, and is lost until then if its shim is gone.
fn finish(ground: &Arc<Ground>, name: Arc<Name>) {
    if let Some(created) = ground.book.look(&name, |entry| entry.created) {
        tokio::spawn(go_on(ground.clone(), name, created));
    }
}

async fn go_on(ground: Arc<Ground>, name: Arc<Name>, created: u64) {
    // Another container may have the name by then.
    let look = || ground.book.look(&name, |entry| (entry.created, entry.stage.clone(), entry.auto_remove));
    while let Some((_, stage, auto_remove)) = look().filter(|found| found.0 == created) {
        let lost = matches!(stage, Stage::Lost(_));
        let marked = match stage {
            Stage::Lost(_) if !auto_remove => return,
            Stage::Live | Stage::Lost(_) if auto_remove => match Attended::by_anybody(&ground.places().logs(&name)) {
                Ok(None) => ground.change(&name, |entry| entry.stage = Stage::Removing),
                // The client removes it itself when it has what it wants.
                Ok(Some(attended)) if lost || ground.shims.lives(&name) => match attended.left().await {
                    Ok(()) => continue,
                    Err(error) => Err(Fault::Failed(format!("wait for the client of container {name}: {error}"))),
                },
                Ok(Some(_)) => Ok(()),
                Err(error) => Err(Fault::Failed(format!("look for a client of container {name}: {error}"))),
            },
            _ => Ok(()),
        };
        let ended = match marked {
            Ok(()) => ground.end(&name).await,
            Err(fault) => Err(fault),
        };
        if let Err(error) = ended {
            log::warn!("finish container {name}: {error}; tried again in {PAUSE:?}");
            sleep(PAUSE).await;
        }
    }
}

/// Asks shims how their containers are, and gives back the memory that this took.
async fn ask_all(ground: Arc<Ground>, names: Vec<Arc<Name>>) {
    let asked = stream::iter(names).map(|name| ask(&ground, name)).buffer_unordered(AT_ONCE);
    let ended: Vec<_> = asked.filter_map(std::future::ready).collect().await;
    // Their exits are on their way, or in the journal already.
    if !ended.is_empty()
        && let Err(error) = hear_again(&ground, &ended, ground.relay.last())
    {
        log::warn!("look in the journal for the exits of {} containers: {error}", ended.len());
    }
    sys::trim();
}

/// Returns the name if it has ended, and the book does not know how.
async fn ask(ground: &Ground, name: Arc<Name>) -> Option<Arc<Name>> {
    let answer = ground.state(&name).await;
    let told = match answer {
        Ok(told) => Some(told),
        // A client has deleted it past us. What is there to do is told by its exit event.
        Err(fault) if fault.is_not_found() => Some((Phase::STOPPED, 0)),
        Err(fault) => {
            log::warn!("ask how container {name} is: {fault}");
            None
        }
    };
    if let Some((phase, pid)) = told {
        ground.book.told(&name, phase, pid);
    }
    ground.book.answered();
    let ended = told.is_some_and(|(phase, _)| phase == Phase::STOPPED);
    let unknown = ended && ground.book.look(&name, |entry| entry.exit.is_none()) == Some(true);
    unknown.then_some(name)
}
