package nfsvm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// VM is a running virtual machine.
type VM struct {
	Console string // file with what the kernel has said

	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{} // closed when QEMU has ended

	mu      sync.Mutex
	next    int
	waiting map[int]chan Response
}

// Boot starts a guest whose file system is the packages' with payload's files on top, and returns
// when it answers. dir is for the files it needs while it runs. The guest has one processor: with
// two, QEMU 7.2 without KVM is known to make kernels hang and panic that are not at fault.
func Boot(dir string, p *Packages, payload func(Adder) error) (*VM, error) {
	initrd := filepath.Join(dir, "initrd")
	f, err := os.Create(initrd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := p.Initramfs(f, payload); err != nil {
		return nil, err
	}

	vm := &VM{Console: filepath.Join(dir, "console"), done: make(chan struct{}), waiting: make(map[int]chan Response)}
	vm.cmd = exec.Command("nice", "-n", "15", "qemu-system-x86_64",
		"-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "1G",
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot",
		"-serial", "file:"+vm.Console, "-serial", "stdio",
		"-kernel", p.Kernel(), "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=3 panic=-1 tsc=unstable random.trust_cpu=on mitigations=off audit=0")
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	vm.cmd.Stderr = os.Stderr
	if vm.in, err = vm.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := vm.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	ready := make(chan Response, 1)
	vm.waiting[0] = ready
	if err := vm.cmd.Start(); err != nil {
		return nil, err
	}
	go vm.receive(out)
	select {
	case <-ready:
		return vm, nil
	case <-vm.done:
		return nil, errors.Join(errors.New("the virtual machine ended before it answered"), vm.lastWords())
	case <-time.After(3 * time.Minute):
		vm.Close()
		return nil, errors.Join(errors.New("the virtual machine did not answer within 3 minutes"), vm.lastWords())
	}
}

// receive hands each line to who waits for it, until QEMU ends.
func (vm *VM) receive(out io.Reader) {
	defer close(vm.done)
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break
		}
		var p Response
		if json.Unmarshal(line, &p) != nil {
			continue // what firmware says before there is a system
		}
		vm.mu.Lock()
		c := vm.waiting[p.ID]
		delete(vm.waiting, p.ID)
		vm.mu.Unlock()
		if c != nil {
			c <- p
		}
	}
	vm.cmd.Wait()
}

// Go sends a request; the response comes over the channel, which is closed without one when the
// guest has died.
func (vm *VM) Go(q Request) <-chan Response {
	c := make(chan Response, 1)
	vm.mu.Lock()
	vm.next++
	q.ID = vm.next
	vm.waiting[q.ID] = c
	line, err := json.Marshal(q)
	if err == nil {
		_, err = vm.in.Write(append(line, '\n'))
	}
	vm.mu.Unlock()
	if err != nil {
		c <- Response{ID: q.ID, Err: err.Error()}
	}
	return c
}

// Do sends a request and waits for the response, at most two minutes.
func (vm *VM) Do(q Request) Response { return vm.Await(vm.Go(q)) }

// Await waits for a response, at most two minutes.
func (vm *VM) Await(c <-chan Response) Response {
	select {
	case p := <-c:
		return p
	case <-vm.done:
		return Response{Err: "the virtual machine has ended: " + vm.lastWords().Error()}
	case <-time.After(2 * time.Minute):
		return Response{Err: "no response within 2 minutes: " + vm.lastWords().Error()}
	}
}

// lastWords are the end of what the kernel said on its console.
func (vm *VM) lastWords() error {
	b, _ := os.ReadFile(vm.Console)
	if n := len(b); n > 3000 {
		b = b[n-3000:]
	}
	return fmt.Errorf("the end of the console:\n%s", strings.ReplaceAll(string(b), "\r", ""))
}

// Close ends the virtual machine.
func (vm *VM) Close() {
	vm.cmd.Process.Kill()
	vm.in.Close()
	<-vm.done
}
