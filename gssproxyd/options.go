package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gssproxyd/gssproxyd/logs"
)

// Where things are, as distributions build the C daemon.
const (
	defaultStateDir = "/var/lib/gssproxy"
	defaultPIDFile  = "/var/run/gssproxy.pid"
)

// options are the command line's, under the names the C daemon gives them.
type options struct {
	daemon, interactive bool
	config, configDir   string
	socket, stateDir    string
	pidFile             string // from the environment only
	runAsUser           string
	userproxy           bool
	idleTimeout         int
	debug               bool
	debugLevel          int
	syslogStatus        bool
	logFormat           string
	compat              bool
	usage               bool
	extractCCache       string
	intoCCache          string
}

// stateDirFromEnv is GSSPROXYD_STATE_DIR, then the directory a service manager made for us, empty
// without either.
func stateDirFromEnv() string {
	if dir := os.Getenv("GSSPROXYD_STATE_DIR"); dir != "" {
		return dir
	}
	// systemd's StateDirectory= may name several, separated by colons; the first is the daemon's
	// own.
	dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return dir
}

// absolute makes paths of the command line, and that of the pid file, independent of the working
// directory.
func (o *options) absolute() error {
	for _, path := range []*string{&o.config, &o.configDir, &o.socket, &o.stateDir, &o.pidFile} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("%w; write absolute paths", err)
		}
	}
	return nil
}

// debugLevelInForce is the command line's level. A configuration can raise it and cannot lower it.
func (o *options) debugLevelInForce() int {
	if o.debug {
		return max(1, o.debugLevel)
	}
	return o.debugLevel
}

// logFormatInForce is the command line's, and else in the foreground what suits the standard error.
// In the background that is only where errors at the start go.
func (o *options) logFormatInForce(foreground bool) string {
	if o.logFormat == "" && foreground {
		return logs.OfStderr()
	}
	return o.logFormat
}
