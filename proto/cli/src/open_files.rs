//! How many files, and so connections, a process may have open.

use std::io;

use rustix::io::fcntl_dupfd_cloexec;

/// Lets this process open as many files as the operating system allows, and has it keep room for `expected` of them from
/// now on; returns how many are allowed.
///
/// Linux enlarges the table of open files by doubling, and where threads share it waits each time until no processor can
/// still be looking at the old one (`expand_fdtable`): about ten milliseconds in which nobody is let in. Before there are
/// threads it costs nothing, and the table never shrinks; so this belongs at the beginning of `main`.
///
/// # Errors
/// When the limit can't be raised, or there is nothing to be opened. Fewer files can be opened then, or the room is made
/// later: the process works all the same.
pub fn make_room(expected: usize) -> io::Result<u64> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    let last = limit.min(expected as u64).saturating_sub(1);
    // Opening one with a high number is what makes the table that long.
    drop(fcntl_dupfd_cloexec(io::stderr(), i32::try_from(last).unwrap_or(i32::MAX))?);
    Ok(limit)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use super::*;

    fn table_size() -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        status.lines().find_map(|line| line.strip_prefix("FDSize:"))?.trim().parse().ok()
    }

    #[test]
    fn the_table_is_as_long_as_what_is_expected_and_no_longer_than_what_is_allowed() {
        let limit = make_room(1000).unwrap();
        assert!(table_size() >= Some(limit.min(1000)));
        assert_eq!(make_room(usize::MAX).unwrap(), limit);
    }
}
