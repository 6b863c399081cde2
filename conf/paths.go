package conf

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// path warns about a path that is not what it seems to be: with words for a shell, or relative.
// Nothing is expanded or unquoted in the files.
func (v value) path(r *reader, path string) {
	switch word := forShell.FindString(path); {
	case strings.Trim(path, `"'`) != path:
		r.warn(v.at, v.is("has a quote in it, which is part of the path"), "remove the quotes")
	case word != "":
		r.warn(v.at, v.is(fmt.Sprintf("has %q in it, which stands for itself: no shell expands it", word)), "write out what is meant")
	case path != "" && path[0] != '/':
		r.warn(v.at, v.is("has a relative path in it, which depends on the directory the daemon is started in"), "write a path that begins with /")
	}
}

// forShell is what a shell would replace in a path.
var forShell = regexp.MustCompile("^~[^/]*|`.*|[$][{(][^})]*[})]?|[$][A-Za-z_][A-Za-z_0-9]*")

// maxSocket is the size of sun_path without its NUL.
const maxSocket = 107

var socketPath = kind[string]{
	name: "path",
	read: func(r *reader, v value, dst *string) {
		if v.empty(r) {
			return
		}
		v.plain(r)
		path := v.text
		if path[0] != '/' {
			if !v.odd(r, "is not an absolute path", "a path that begins with / is expected", "write the whole path", "it is read as /"+path) {
				return
			}
			path = "/" + path
		}
		if len(path) > maxSocket {
			if !v.odd(r, fmt.Sprintf("has %d bytes", len(path)), fmt.Sprintf("at most %d fit into a socket's address", maxSocket), "shorten it", "it is cut there") {
				return
			}
			path = path[:maxSocket]
		}
		v.path(r, path)
		*dst = path
	},
	write: optional,
}

var metricsAddress = kind[string]{
	name: "address:port or unix:path",
	read: func(r *reader, v value, dst *string) {
		const expected = "the address and port of this host to listen on, such as 127.0.0.1:9118, or unix: and an absolute path is expected"
		if v.empty(r) {
			return
		}
		if path, ok := strings.CutPrefix(v.text, metricsUnix); ok {
			switch {
			case path == "" || path[0] != '/':
				v.bad(r, "has no absolute path in it", expected, "write "+metricsUnix+" and a path that begins with /")
			case len(path) > maxSocket:
				v.bad(r, fmt.Sprintf("has a path of %d bytes", len(path)), fmt.Sprintf("at most %d fit into a socket's address", maxSocket), "shorten it")
			default:
				v.path(r, path)
				*dst = v.text
			}
			return
		}
		at, err := netip.ParseAddrPort(v.text)
		host, port, split := net.SplitHostPort(v.text)
		switch {
		case split == nil && host == "":
			v.bad(r, "has no address in it", expected, "write 127.0.0.1:"+port+", or 0.0.0.0:"+port+" if any host is to be answered")
		case err != nil && split == nil && !strings.Contains(host, ":") && strings.Trim(host, ".0123456789") != "":
			v.bad(r, "has a name in it, which the daemon asks nobody about", expected, "write the address")
		case err != nil:
			v.bad(r, "is no address with a port", expected, "write 127.0.0.1:9118")
		case at.Port() == 0:
			v.bad(r, "has the port 0, which nobody could find", expected, "write a port, such as 9118")
		default:
			if !at.Addr().Unmap().IsLoopback() {
				r.warn(v.at, v.is("can be reached from other hosts, and whoever can connect is answered, without encryption"), "write 127.0.0.1 or unix:/path, and have something in front of it that says who may ask; or see to it that a packet filter does")
			}
			*dst = v.text
		}
	},
	write: optional,
}

var programNames = kind[[]string]{
	name: "list of names",
	read: func(r *reader, v value, dst *[]string) {
		const expected = "the last component of the program's path is expected, as in su"
		v.plain(r)
		names := slices.Collect(tokens(v.text))
		if len(names) == 0 {
			v.bad(r, "names no program", expected, "write a name, or remove the line")
			return
		}
		for i, name := range names {
			socket := r.cfg.programSocket(name)
			switch {
			case strings.Contains(name, "/"):
				v.bad(r, fmt.Sprintf("has %q in it, with a slash", shorten(name)), expected, "write "+filepath.Base(name))
			case name == "." || name == "..":
				v.bad(r, fmt.Sprintf("has %q in it, which no program is called", name), expected, "write its name")
			case slices.Contains(names[:i], name):
				v.bad(r, fmt.Sprintf("has %q in it twice", shorten(name)), "", "remove one of them")
			case len(socket) > maxSocket:
				v.bad(r, fmt.Sprintf("makes the socket %s, whose path has %d bytes", shorten(socket), len(socket)), fmt.Sprintf("at most %d fit into a socket's address", maxSocket), "shorten the path of the default socket (-s)")
			}
		}
		*dst = names
	},
	write: func(names []string) []string { return optional(strings.Join(names, " ")) },
}

var programPath = text("path", func(r *reader, v value) bool {
	const expected = "the absolute path of an executable file is expected"
	switch {
	case v.text[0] != '/':
		v.bad(r, "is not an absolute path", expected, "write the whole path")
		return false
	case strings.Contains(v.text, "|"):
		v.bad(r, "contains |", expected, "write one path; a service for each program")
		return false
	}
	// The kernel reports resolved paths. A file that is not there yet, or not readable, is no
	// reason to complain.
	resolved, err := filepath.EvalSymlinks(v.text)
	program, _, arguments := strings.Cut(v.text, " ")
	switch {
	case err == nil && resolved != v.text:
		r.warn(v.at, v.is("is not the path the kernel reports for that program, so no peer will match"), "write "+resolved)
	case err != nil && arguments && !hasComment(v.text):
		r.warn(v.at, v.is("has arguments, it seems: the kernel reports a program's path alone, so no peer will match"), "write "+program)
	default:
		v.path(r, v.text)
	}
	return true
})

// filePath is a file that the daemon writes.
var filePath = text("path", func(r *reader, v value) bool {
	const expected = "the absolute path of a file is expected"
	switch {
	case v.text[0] != '/':
		v.bad(r, "is not an absolute path", expected, "write the whole path")
		return false
	case strings.HasSuffix(v.text, "/"):
		v.bad(r, "is a directory", expected, "write the name of a file in it")
		return false
	}
	v.plain(r)
	v.path(r, v.text)
	return true
})
