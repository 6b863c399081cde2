package nss

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/xdr"
)

// The conversation over the helper's standard input and output: records of a
// length (32 bits, big-endian) and so many bytes of XDR.
//
//	question: id, kind, milliseconds it may take, key
//	answer:   id, status, text of an error, name, uid, gid, number of groups, groups ...
//
// Answers come in any order.
const (
	statusFound = iota
	statusNoUser
	statusFailed
)

const (
	maxKey      = 1024
	maxQuestion = 2 * maxKey
	maxGroups   = 65536 // NGROUPS_MAX
	maxAnswer   = 4*maxGroups + 8*maxKey
)

// HelperArg is the argument with which the daemon starts itself as a helper.
const HelperArg = "nss-helper"

// errDead means that the helper ended before it answered.
var errDead = errors.New("the name service helper ended")

// helper is a running helper.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu      sync.Mutex
	id      uint32
	waiting map[uint32]chan answer // by id of the question; each holds one answer
	done    chan struct{}          // closed when the process is gone
	err     error                  // why, once done is closed
}

// strangerUIDs is where the uid of a helper that root starts is from: a range that is given to nobody, beyond
// containers' and directories'. NSS needs no privilege to say who a user is, and it must be nobody who shares his uid
// with others: they could put words into the helper's mouth.
const (
	strangerUIDs = 0x78000000
	strangers    = 0x04000000
)

// helperNice is the priority of a helper: a crowd of clients on the same host must not starve who lets them in.
const helperNice = -10

// start starts a helper. Its descriptors are a pipe in, a pipe out and
// /dev/null; every other one is closed when it is executed.
func start(o *Options) (*helper, error) {
	command, env := o.Command, o.Env
	if command == nil {
		// Not by name: that may be another program by now, or where nobody may look.
		command = []string{"/proc/self/exe", HelperArg}
	}
	if env == nil {
		env = []string{"PATH=" + cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL=C"}
	}
	attempt := func(credential *syscall.Credential) (*helper, error) {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Args[0] = "gssproxyd"
		cmd.Env, cmd.Dir = env, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		// Threads of the kernel wait for the answers. When this is not permitted they wait a little longer.
		unix.Setpriority(unix.PRIO_PGRP, cmd.Process.Pid, helperNice)
		h := &helper{cmd: cmd, in: in, waiting: map[uint32]chan answer{}, done: make(chan struct{})}
		go h.read(out)
		return h, nil
	}
	if os.Geteuid() != 0 {
		return attempt(nil)
	}
	var random [4]byte
	rand.Read(random[:])
	stranger := strangerUIDs + binary.NativeEndian.Uint32(random[:])%strangers
	h, err := attempt(&syscall.Credential{Uid: stranger, Gid: stranger, Groups: []uint32{}})
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		o.Log.Warn("the name service helper runs as this daemon's user: changing the user is not permitted", "error", err)
		return attempt(nil)
	}
	return h, err
}

// read takes answers until the helper closes its output, and then sees to its end.
func (h *helper) read(out io.Reader) {
	r := bufio.NewReader(out)
	err := h.answers(r)
	h.cmd.Process.Kill()
	waitErr := h.cmd.Wait()
	if err == io.EOF {
		err = errDead
		if waitErr != nil {
			err = fmt.Errorf("%w: %w", errDead, waitErr)
		}
	}
	h.mu.Lock()
	h.err = err
	h.mu.Unlock()
	close(h.done)
}

func (h *helper) answers(r *bufio.Reader) error {
	for {
		b, err := readRecord(r, maxAnswer)
		if err != nil {
			return err
		}
		id, a, err := parseAnswer(b)
		if err != nil {
			return err
		}
		h.mu.Lock()
		waiting := h.waiting[id]
		delete(h.waiting, id)
		h.mu.Unlock()
		if waiting != nil {
			waiting <- a
		}
	}
}

// grace is how much longer than the question may take its answer is waited for.
const grace = 500 * time.Millisecond

// ask puts one question and waits for its answer. The helper sees to the
// question's time; one that does not is of no more use and is killed.
func (h *helper) ask(ctx context.Context, q question) (Account, error) {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	if left < time.Millisecond {
		return Account{}, ctx.Err()
	}
	reply := make(chan answer, 1)
	h.mu.Lock()
	h.id++
	id := h.id
	h.waiting[id] = reply
	b := appendRecord(nil, func(b []byte) []byte {
		b = xdr.AppendUint32(b, id)
		b = xdr.AppendUint32(b, uint32(q.kind))
		b = xdr.AppendUint32(b, uint32(left/time.Millisecond))
		return xdr.AppendString(b, q.key)
	})
	// The helper always reads, so this does not wait; and a question is shorter than PIPE_BUF, so it goes as one.
	_, err := h.in.Write(b)
	h.mu.Unlock()
	if err != nil {
		h.cmd.Process.Kill()
	}
	patience := time.NewTimer(left + grace)
	defer patience.Stop()
	select {
	case a := <-reply:
		return a.account, a.err
	case <-h.done:
		return Account{}, h.err
	case <-patience.C:
		h.cmd.Process.Kill()
		return Account{}, fmt.Errorf("the name service helper gave no answer within %v", left.Round(10*time.Millisecond))
	}
}

func (h *helper) alive() bool {
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// stop ends the helper: it goes when its input ends, and takes what it runs with it.
func (h *helper) stop() {
	h.in.Close()
	patience := time.NewTimer(2 * time.Second)
	defer patience.Stop()
	select {
	case <-h.done:
	case <-patience.C:
		h.cmd.Process.Kill()
		<-h.done
	}
}

// appendRecord appends a record with what body appends.
func appendRecord(b []byte, body func([]byte) []byte) []byte {
	n := len(b)
	b = body(append(b, 0, 0, 0, 0))
	xdr.AppendUint32(b[n:n], uint32(len(b)-n-4))
	return b
}

// readRecord returns the content of the next record, io.EOF if there is none.
func readRecord(r *bufio.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		return nil, err
	}
	n := int(xdr.NewDecoder(head[:]).Uint32())
	if n > limit {
		return nil, fmt.Errorf("a record of the name service helper has %d bytes, at most %d expected", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, io.EOF
	}
	return b, nil
}

func appendAnswer(b []byte, id uint32, a Account, err error) []byte {
	status, text := uint32(statusFound), ""
	switch {
	case errors.Is(err, conf.ErrNoUser):
		status = statusNoUser
	case err != nil:
		status, text = statusFailed, err.Error()
		text = text[:min(len(text), maxKey)]
	}
	return appendRecord(b, func(b []byte) []byte {
		b = xdr.AppendUint32(b, id)
		b = xdr.AppendUint32(b, status)
		b = xdr.AppendString(b, text)
		b = xdr.AppendString(b, a.Name)
		b = xdr.AppendUint32(b, a.UID)
		b = xdr.AppendUint32(b, a.GID)
		b = xdr.AppendUint32(b, uint32(len(a.Groups)))
		for _, g := range a.Groups {
			b = xdr.AppendUint32(b, g)
		}
		return b
	})
}

func parseAnswer(b []byte) (id uint32, a answer, err error) {
	d := xdr.NewDecoder(b)
	id = d.Uint32()
	status, text := d.Uint32(), string(d.OpaqueMax(maxKey))
	a.account = Account{Name: string(d.OpaqueMax(maxKey)), UID: d.Uint32(), GID: d.Uint32()}
	if n := d.Count(4); n > 0 {
		a.account.Groups = make([]uint32, n)
		for i := range a.account.Groups {
			a.account.Groups[i] = d.Uint32()
		}
	}
	switch {
	case d.Err() != nil:
		return 0, answer{}, fmt.Errorf("an answer of the name service helper is malformed: %w", d.Err())
	case status == statusNoUser:
		a = answer{err: conf.ErrNoUser}
	case status != statusFound:
		a = answer{err: errors.New(text)}
	}
	return id, a, nil
}
