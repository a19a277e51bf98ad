//! A container that is stopped in its tracks, and goes on.

use dunnage_tests::{case, eventually};

#[test]
fn a_paused_container_does_nothing_and_goes_on_when_resumed() {
    case(|c| {
        let counting = c.run("clock", ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 1000; done"]).spawn();
        counting.stdout().line("3");
        c.ctr(["task", "pause", "clock"]).ok();
        assert_eq!(c.task("clock").expect("the task").1, "PAUSED");
        assert!(c.cgroup("clock").is_frozen());
        c.event("the pause", |event| event.topic == "/tasks/paused");
        let refused = c.exec("clock", "late", ["true"]).output();
        assert!(refused.refused().contains("paused"), "{refused:?}");

        c.ctr(["task", "resume", "clock"]).ok();
        assert_eq!(c.task("clock").expect("the task").1, "RUNNING");
        c.event("the resume", |event| event.topic == "/tasks/resumed");
        let seen = counting.stdout().text().lines().count();
        counting.stdout().find("more output", |text| (text.lines().count() > seen).then_some(()));
        c.ctr(["task", "kill", "--signal", "SIGKILL", "clock"]).ok();
        assert_eq!(counting.wait().code, 137);
    });
}

#[test]
fn pause_and_resume_out_of_turn_are_refused() {
    case(|c| {
        c.idle("clock", &[]);
        c.ctr(["task", "resume", "clock"]).refused();
        c.ctr(["task", "pause", "clock"]).ok();
        c.ctr(["task", "pause", "clock"]).refused();
        c.ctr(["task", "resume", "clock"]).ok();
    });
}

#[test]
fn a_paused_container_can_be_killed() {
    case(|c| {
        c.idle("clock", &[]);
        c.ctr(["task", "pause", "clock"]).ok();
        c.ctr(["task", "kill", "--signal", "SIGKILL", "clock"]).ok();
        // A frozen process of a v1 cgroup takes the signal when it thaws, which is the client's to ask for.
        eventually("the end", || {
            let ended = c.task("clock").is_none_or(|(_, status)| status == "STOPPED");
            if !ended {
                c.ctr(["task", "resume", "clock"]);
            }
            ended.then_some(())
        });
        assert_eq!(c.exit_status("clock", "clock"), 137);
    });
}
