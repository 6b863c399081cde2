package nss

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/xdr"
)

// Help is the helper: it gives up its privileges, and answers the questions it reads from in until
// that ends, which is when the daemon does, and takes unfinished look-ups with it. args are what
// follows HelperArg.
func Help(in io.Reader, out io.Writer, args ...string) error {
	dropPrivileges(out, args)
	return help(in, out, "/etc")
}

// Priorities of helpers and what they run. Threads of the kernel wait for the answers of the urgent
// one, and a crowd of clients on the same host must not starve who lets them in. What callers ask
// takes a process each: those come after the daemon and whom it serves without them. But come they
// must: with the least priority there is, a busy machine had no answer for half a minute.
const (
	urgentNice = -10
	usualNice  = 10
)

// firstHelperUID begins the range that the uid of a helper is from that root starts: it is given to
// nobody, beyond containers' and directories'. NSS needs no privilege to say who a user is, and it
// must be nobody who shares his uid with others: they could put words into the helper's mouth.
const (
	firstHelperUID = 0x78000000
	helperUIDs     = 0x04000000
)

// dropPrivileges makes this process what a helper is to be before it reads a question. That it
// stays the daemon's user is told to the daemon; were that root, every program would get root's
// capabilities again, but for no_new_privs.
func dropPrivileges(out io.Writer, args []string) {
	nice := usualNice
	if slices.Contains(args, urgentArg) {
		nice = urgentNice
	}
	unix.Setpriority(unix.PRIO_PGRP, 0, nice) // where that is not permitted, answers take a little longer
	if err := BecomeNobody(); err != nil {
		out.Write(appendAnswer(nil, 0, Account{}, err))
	}
}

// BecomeNobody makes this process a user that nobody else is, without capabilities, which cannot get
// any. The error is why it stays who it is.
func BecomeNobody() error {
	_, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	return errors.Join(err, becomeUnusedUID())
}

func becomeUnusedUID() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("uid %d, and only root can become another user", os.Geteuid())
	}
	var random [4]byte
	rand.Read(random[:])
	id := firstHelperUID + int(binary.NativeEndian.Uint32(random[:])%helperUIDs)
	return errors.Join(
		syscall.Setgroups(nil), syscall.Setresgid(id, id, id), syscall.Setresuid(id, id, id),
		cap.NewSet().SetProc(), // nothing is left to drop, unless the uid could not be changed
	)
}

// maxLookUps is how many times getent is run at once: as many as the kernel asks questions at once,
// and as many as callers may have under way. So nobody waits for the slow look-ups of others. More
// wait for their turn, within their time.
const maxLookUps = 64

// sources are where the helper's answers come from.
type sources struct {
	etc    string        // the directory of the files
	getent string        // the program; empty: there is none
	turn   chan struct{} // taken while it runs
}

func newSources(etc string) *sources {
	program, err := exec.LookPath("getent")
	if err != nil {
		program = ""
	}
	return &sources{etc, program, make(chan struct{}, maxLookUps)}
}

func help(in io.Reader, out io.Writer, etc string) error {
	// The daemon decides when to go. The signals of a terminal and of a service manager reach the
	// whole group.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	s := newSources(etc)
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
		id, q, limit := d.Uint32(), question{kind: kind(d.Uint32())}, d.Uint32()
		q.key = string(d.OpaqueMax(maxKey))
		if d.Err() != nil {
			return d.Err()
		}
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(limit)*time.Millisecond)
			defer cancel()
			a, err := s.lookUp(ctx, q)
			b := appendAnswer(nil, id, a, err)
			mu.Lock()
			defer mu.Unlock()
			out.Write(b) // if it fails the daemon is gone, and in ends too
		})
	}
}

// lookUp answers one question: from the files of /etc as far as nsswitch.conf says that nothing
// else can change the answer, which takes no process, and otherwise through getent.
func (s *sources) lookUp(ctx context.Context, q question) (Account, error) {
	sw := readSwitch(s.etc)
	a, err := s.lookUpEntry(ctx, q, sw)
	if err != nil || q.kind != account {
		return a, err
	}
	if s.getent == "" || sw.initgroupsIsFiles {
		a.Groups, err = fileGroups(s.etc+"/group", a)
		return a, err
	}
	// getgrouplist(3), as initgroups(3) would have it.
	line, err := s.ask(ctx, "initgroups", a.Name)
	if err != nil && !errors.Is(err, errNoEntry) {
		return Account{}, err
	}
	a.Groups, err = parseGroups(line, a)
	return a, err
}

// lookUpEntry returns the entry that q asks for of passwd or group.
func (s *sources) lookUpEntry(ctx context.Context, q question, sw nsswitch) (Account, error) {
	database, file, parse := "passwd", sw.passwd, parsePasswd
	if q.kind == group {
		database, file, parse = "group", sw.group, parseGroup
	}
	if s.getent == "" || file.first {
		line, err := fileEntry(s.etc+"/"+database, q)
		switch {
		case err == nil:
			return parse(line)
		case !errors.Is(err, errNoEntry):
			return Account{}, err
		case s.getent == "":
			return Account{}, fmt.Errorf("%w in %s/%s, and getent is not installed to ask elsewhere", q.kind.absent(), s.etc, database)
		case file.only:
			return Account{}, q.kind.absent()
		}
	}
	line, err := s.ask(ctx, database, q.key)
	switch {
	case errors.Is(err, errNoEntry):
		return Account{}, q.kind.absent()
	case err != nil:
		return Account{}, err
	}
	return parse(line)
}

// errNoEntry means that a database was read, and does not have what was asked for.
var errNoEntry = errors.New("no such entry")

// ask runs getent, in its turn.
func (s *sources) ask(ctx context.Context, database, key string) (string, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return "", errors.New("the name service has not answered those before in time")
	}
	return getent(ctx, s.getent, database, key)
}

// getent asks the name service for the entry of a key in a database through getent(1), the program
// with the given path, and returns the entry's first line. The error is errNoEntry if there is no
// such entry. The program is killed when ctx ends.
func getent(ctx context.Context, program, database, key string) (string, error) {
	limit := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline).Round(10 * time.Millisecond)
	}
	cmd := exec.CommandContext(ctx, program, database, key)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("getent %s gave no answer within %v", database, limit)
	case exited && exit.ExitCode() == 2: // key not found
		return "", errNoEntry
	case err != nil:
		return "", fmt.Errorf("getent %s: %w", database, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
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

// parseGroup reads a line of group(5).
func parseGroup(line string) (a Account, err error) {
	fields := strings.SplitN(line, ":", 4) // name:password:gid:members
	if len(fields) < 3 || fields[0] == "" || len(fields[0]) > maxKey {
		return Account{}, fmt.Errorf("getent group: %.200q is no group entry", line)
	}
	a = Account{Name: fields[0], UID: noID} // no user, let alone root
	if a.GID, err = parseID(fields[2]); err != nil {
		return Account{}, fmt.Errorf("getent group: group %s: %w", a.Name, err)
	}
	return a, nil
}

// noID is the number that is no uid or gid.
const noID = math.MaxUint32

// parseID reads a uid or gid.
func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == noID {
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
