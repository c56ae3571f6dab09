//! Gives back the memory that the program's own pages take.
//!
//! Start-up runs much of a large program once, and what it ran stays mapped. The pages are the page cache's: the
//! kernel maps one again when it is touched, without a look at the disk as long as it has memory.

#![allow(unsafe_code, reason = "the program's headers are found through the C library")]

use std::ffi::{c_int, c_void};

/// Unmaps what the program never writes to: its code, its constants, its relocations.
pub fn let_go_of_program() {
    // SAFETY: The callback reads what it is given during the call alone, and nothing is passed to it.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of_object), std::ptr::null_mut()) };
}

/// The first object is the program; that ends the walk.
unsafe extern "C" fn let_go_of_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: The C library passes a valid description of an object.
    let info = unsafe { &*info };
    // SAFETY: Its headers are mapped as long as the object is.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let page = rustix::param::page_size();
    let address = |value| usize::try_from(value).expect("an address fits in a word");
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = address(info.dlpi_addr) + address(header.p_vaddr);
        let end = start + address(header.p_memsz);
        // Whole pages only: nothing of a neighbour may go.
        let (start, end) = (start.next_multiple_of(page), end / page * page);
        if start < end {
            // SAFETY: The range is a read-only private mapping of a file, never written to: it reads the same
            // when it is mapped anew.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_goes_on_without_its_pages() {
        super::let_go_of_program();
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(text.contains("Rss:"));
    }
}
