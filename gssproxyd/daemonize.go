package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"gssproxyd/command"
)

// envReadyFD tells a background process the descriptor on which its parent waits for the word that
// it serves.
const envReadyFD = "GSSPROXYD_READY_FD"

// daemonize starts this program again in the background, in a session of its own, and waits until
// it serves. The parent's exit status then is the truth: 0 when clients can connect. The child is
// told apart by its environment. It leaves the working directory itself, once it has read the paths
// of the command line.
func daemonize(stderr io.Writer) error {
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program to start it in the background: %w", err)
	}
	child := exec.Command(self, os.Args[1:]...)
	child.Env = append(os.Environ(), envReadyFD+"=3")
	child.ExtraFiles = []*os.File{readyChild}
	child.Stderr = stderr // errors at start are the caller's to read; after that the log goes to syslog
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	readyChild.Close()
	if n, _ := ready.Read(make([]byte, 1)); n == 1 {
		return child.Process.Release()
	}
	if exit, ok := errors.AsType[*exec.ExitError](child.Wait()); ok && exit.ExitCode() > 0 {
		return command.Status(exit.ExitCode())
	}
	return command.Failure
}

// readyPipe is the pipe to a waiting parent, nil in the foreground.
func readyPipe() *os.File {
	fd, err := strconv.Atoi(os.Getenv(envReadyFD))
	if err != nil {
		return nil
	}
	os.Unsetenv(envReadyFD)
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready pipe")
}
