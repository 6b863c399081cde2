package nss

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"gssproxyd/conf"
	"gssproxyd/xdr"
)

// Help is the helper: it answers the questions it reads from in until that ends,
// which is when the daemon does, and takes unfinished look-ups with it.
func Help(in io.Reader, out io.Writer) error { return help(in, out, "/etc") }

func help(in io.Reader, out io.Writer, etc string) error {
	// The daemon decides when to go. The signals of a terminal and of a service manager reach the whole group.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	getent, err := exec.LookPath("getent")
	if err != nil {
		getent = ""
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var mu sync.Mutex
	r := bufio.NewReader(in)
	for {
		b, err := readRecord(r, maxQuestion)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		d := xdr.NewDecoder(b)
		id, q, patience := d.Uint32(), question{kind: kind(d.Uint32())}, d.Uint32()
		q.key = string(d.OpaqueMax(maxKey))
		if d.Err() != nil {
			return d.Err()
		}
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(patience)*time.Millisecond)
			defer cancel()
			a, err := lookUp(ctx, etc, getent, q)
			b := appendAnswer(nil, id, a, err)
			mu.Lock()
			defer mu.Unlock()
			out.Write(b) // if it fails the daemon is gone, and in ends too
		})
	}
}

// lookUp answers one question: from the files of /etc as far as nsswitch.conf says that nothing else can change the
// answer, which takes no process, and otherwise through getent.
func lookUp(ctx context.Context, etc, getent string, q question) (Account, error) {
	sw := readSwitch(etc)
	a, err := lookUpPasswd(ctx, etc, getent, q, sw)
	if err != nil || q.kind != account {
		return a, err
	}
	if getent == "" || sw.groupIsFiles {
		a.Groups, err = fileGroups(etc+"/group", a)
		return a, err
	}
	// getgrouplist(3), as initgroups(3) would have it.
	line, err := conf.Getent(ctx, getent, "initgroups", a.Name)
	if err != nil && !errors.Is(err, conf.ErrNoUser) {
		return Account{}, err
	}
	a.Groups, err = parseGroups(line, a)
	return a, err
}

func lookUpPasswd(ctx context.Context, etc, getent string, q question, sw nsswitch) (Account, error) {
	if getent == "" || sw.passwdStartsWithFiles {
		a, err := fileUser(etc+"/passwd", q)
		switch {
		case !errors.Is(err, conf.ErrNoUser):
			return a, err
		case getent == "":
			return Account{}, fmt.Errorf("%w in %s/passwd, and getent is not installed to ask elsewhere", err, etc)
		case sw.passwdIsFiles:
			return Account{}, err
		}
	}
	line, err := conf.Getent(ctx, getent, "passwd", q.key)
	if err != nil {
		return Account{}, err
	}
	return parsePasswd(line)
}

// parsePasswd reads a line of passwd(5).
func parsePasswd(line string) (a Account, err error) {
	fields := strings.Split(line, ":") // name:password:uid:gid:...
	if len(fields) < 4 || fields[0] == "" || len(fields[0]) > maxKey {
		return Account{}, fmt.Errorf("getent passwd: %.200q is no passwd entry", line)
	}
	a.Name = fields[0]
	for i, id := range []*uint32{&a.UID, &a.GID} {
		if *id, err = parseID(fields[2+i]); err != nil {
			return Account{}, fmt.Errorf("getent passwd: user %s: %w", a.Name, err)
		}
	}
	return a, nil
}

// parseID reads a uid or gid, of which the largest number is none.
func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == math.MaxUint32 {
		return 0, fmt.Errorf("%.32q is no uid or gid", s)
	}
	return uint32(id), nil
}

// parseGroups reads "name gid gid ...", and puts the user's own group first.
func parseGroups(line string, a Account) ([]uint32, error) {
	rest, ok := strings.CutPrefix(line, a.Name)
	if !ok && line != "" {
		return nil, fmt.Errorf("getent initgroups: %.200q is not about user %s", line, a.Name)
	}
	fields := strings.Fields(rest)
	groups := append(make([]uint32, 0, 1+len(fields)), a.GID)
	for _, f := range fields {
		gid, err := parseID(f)
		if err != nil {
			return nil, fmt.Errorf("getent initgroups: user %s: %w", a.Name, err)
		}
		if gid != a.GID {
			groups = append(groups, gid)
		}
	}
	if len(groups) > maxGroups {
		return nil, fmt.Errorf("user %s is in %d groups, at most %d are possible", a.Name, len(groups), maxGroups)
	}
	return groups, nil
}
