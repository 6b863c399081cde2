package conf

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

// Kinds of values of a [SocketAccess].

var socketOwner = kind[AccountID]{
	name: "user",
	read: func(r *reader, v value, dst *AccountID) {
		uid := uint32(noUser)
		if user.read(r, v, &uid); uid != noUser {
			*dst = AccountID{true, uid}
		}
	},
	write: AccountID.written,
}

var socketGroup = kind[AccountID]{
	name: "group",
	read: func(r *reader, v value, dst *AccountID) {
		var gids []uint32
		if groups.read(r, v, &gids); len(gids) > 0 {
			*dst = AccountID{true, gids[0]}
		}
	},
	write: AccountID.written,
}

func (a AccountID) written() []string {
	if !a.Set {
		return nil
	}
	return []string{strconv.FormatUint(uint64(a.ID), 10)}
}

var socketMode = kind[fs.FileMode]{
	name: "mode in octal",
	read: func(r *reader, v value, dst *fs.FileMode) {
		const expected = "0600, 0660, 0666 or the like is expected"
		n, err := strconv.ParseUint(v.text, 8, 32)
		switch mode := fs.FileMode(n); {
		case v.empty(r):
		case err != nil:
			v.bad(r, "is not a mode", expected, "write digits from 0 to 7")
		case n&^0o666 != 0:
			v.bad(r, "has more than rights to read and to write", expected, fmt.Sprintf("write %04o", mode&0o666|0o600))
		case n&0o200 == 0:
			v.bad(r, "forbids the owner to connect, who may change it", expected, fmt.Sprintf("write %04o", mode|0o600))
		default:
			*dst = mode
		}
	},
	write: func(mode fs.FileMode) []string {
		if mode == 0 {
			return nil
		}
		return []string{fmt.Sprintf("%04o", uint32(mode))}
	},
}

// access looks for sockets of which the services that share them say different things, and for those
// that their own services cannot connect to.
func (r *reader) access() {
	all := r.cfg.Services
	if admin := r.cfg.Admin(); slices.Contains(r.cfg.Sockets(), admin) {
		r.errors = append(r.errors, r.cfg.Problem("admin_socket", fmt.Sprintf("the admin socket %s is one for calls, too", admin), "", "give one of them another path"))
	}
	for i, s := range all {
		wrong := func(what, do string) {
			key := "socket_mode"
			for _, k := range []string{"socket_group", "socket_owner"} {
				if len(s.from[k]) > 0 {
					key = k
				}
			}
			r.errors = append(r.errors, s.Problem(key, 0, what, "", do))
		}
		path := r.cfg.SocketOf(s)
		if path == r.cfg.DefaultSocket {
			if s.Access != (SocketAccess{}) {
				wrong(fmt.Sprintf("[service/%s] is reached through the default socket, which others share", s.Name), "give it a socket of its own; or write the line in [gssproxy], for all that are reached there")
			}
		} else {
			for _, e := range all[:i] {
				if e.Socket == path && e.Access != s.Access {
					wrong(fmt.Sprintf("[service/%s] and [service/%s] (%s) share the socket %s, and say different things of its owner, group or mode", s.Name, e.Name, e.at, path), "write the same lines in both, or give one of them another socket")
					break
				}
			}
		}
		if a := r.cfg.AccessOf(path); !s.vague && !a.mayAdmit(s.EUID) {
			r.warnings = append(r.warnings, s.Problem("socket_mode", 0,
				fmt.Sprintf("uid %d, who [service/%s] is for, cannot connect to %s, of mode %04o", s.EUID, s.Name, path, uint32(a.Mode)), "",
				fmt.Sprintf("add a socket_group that it is in, with socket_mode = 0660, or socket_owner = %d", s.EUID)))
		}
	}
}

// mayAdmit reports whether a user may be able to connect, as far as that can be said without its
// groups.
func (a SocketAccess) mayAdmit(uid uint32) bool {
	return a.Mode == 0 || uid == 0 || a.Mode&0o022 != 0 && (a.Mode&0o002 != 0 || a.Group.Set) ||
		a.Owner.Set && a.Owner.ID == uid || !a.Owner.Set && uint32(os.Geteuid()) == uid
}
