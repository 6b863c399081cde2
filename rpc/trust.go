package rpc

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// HiddenRoot returns the uid that a server of root's has for this process, if that is in a user
// namespace to which root does not belong: the overflow uid. Every other user has it too who does
// not belong to the namespace, so whoever trusts it trusts the path: it has to be one that the
// program was told. ok is false in other namespaces, and for a program that runs with more rights
// than who started it (AT_SECURE), since that one may have made the namespace.
func HiddenRoot() (uid uint32, ok bool) {
	m := ownUIDs()
	if m == nil || m.has(0) || secure() {
		return 0, false
	}
	return overflowUID(), true
}

// ambiguous reports whether processes of several users may have this uid for us.
func ambiguous(uid uint32) bool {
	return uid == overflowUID() && !ownUIDs().whole()
}

// uidMap is which uids there are in a user namespace.
type uidMap []struct{ first, n uint64 }

// ownUIDs returns those of ours, nil if that is not known.
func ownUIDs() uidMap {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return nil
	}
	m := uidMap{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line) // in here, outside, how many
		if len(fields) != 3 {
			return nil
		}
		first, err1 := strconv.ParseUint(fields[0], 10, 32)
		n, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 != nil || err2 != nil {
			return nil
		}
		m = append(m, struct{ first, n uint64 }{first, n})
	}
	return m
}

// has reports whether the namespace has a uid.
func (m uidMap) has(uid uint64) bool {
	for _, r := range m {
		if r.first <= uid && uid-r.first < r.n {
			return true
		}
	}
	return false
}

// whole reports whether there is nobody outside of the namespace, as in the first one.
func (m uidMap) whole() bool { return len(m) == 1 && m[0].first == 0 && m[0].n == 1<<32-1 }

// overflowUID is the uid of those who have none here.
func overflowUID() uint32 {
	const usual = 65534
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return usual
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return usual
	}
	return uint32(uid)
}

// secure reports whether the kernel says that this program runs with more rights than who started
// it, or does not say.
func secure() bool {
	const atSecure = 23 // AT_SECURE
	vector, err := unix.Auxv()
	i := slices.IndexFunc(vector, func(v [2]uintptr) bool { return v[0] == atSecure })
	return err != nil || i < 0 || vector[i][1] != 0
}
