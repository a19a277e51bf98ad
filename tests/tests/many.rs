//! Many at once.

use dunnage_tests::case;

#[test]
fn fifty_containers_start_run_and_end_at_once() {
    const COUNT: usize = 50;
    case(|c| {
        let running: Vec<_> = (0..COUNT)
            .map(|number| {
                let script = format!("echo up-{number}; read line; echo $line-{number}; exit {number}");
                c.run(&format!("c{number}"), ["sh", "-c", &script]).spawn()
            })
            .collect();
        for (number, container) in running.iter().enumerate() {
            container.stdout().line(&format!("up-{number}"));
        }
        let list = c.ctr(["task", "ls", "--quiet"]);
        assert_eq!(list.ok().lines().count(), COUNT);
        for mut container in running.into_iter().enumerate() {
            use std::io::Write;
            container.1.stdin().write_all(b"go\n").expect("write");
            let outcome = container.1.wait();
            let number = container.0;
            assert_eq!(outcome.code, number as i32, "{outcome:?}");
            assert_eq!(outcome.stdout, format!("up-{number}\ngo-{number}\n"));
        }
    });
}

#[test]
fn a_hundred_lives_of_one_id_leave_nothing() {
    case(|c| {
        for round in 0..100 {
            let outcome = c.run("again", ["sh", "-c", &format!("exit {}", round % 7)]).output();
            assert_eq!(outcome.code, round % 7, "{outcome:?}");
        }
    });
}
