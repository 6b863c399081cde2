package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/openat"
)

// configuration is what the files say, read once and checked: the daemon's configuration and
// krb5.conf.
type configuration struct {
	conf      *conf.Config
	krb5      *krb5conf.Config // with an error in it, what an empty one is
	krb5Files fingerprint      // of its files
	krb5Err   error
	warnings  []string // about krb5.conf
}

// load reads the configuration files and krb5.conf and looks through both for what cannot be used.
// users answers for the names in them. The error has all that is wrong; the configuration is then
// what could be read.
func (o *options) load(users conf.Users) (*configuration, error) {
	cfg := new(configuration)
	if o.userproxy {
		cfg.conf = conf.UserProxy(uint32(os.Geteuid()))
		return cfg, cfg.readKrb5()
	}
	if users == nil {
		users = nss.NewDirect()
	}
	c, err := conf.Load(o.source(users))
	errs, bad := errors.AsType[*conf.Errors](err)
	if !bad {
		errs = &conf.Errors{Read: c}
	}
	cfg.conf = errs.Read
	cfg.readKrb5()
	warnings, problems := creds.Check(cfg.conf, cfg.krb5)
	cfg.warnings = append(cfg.warnings, warnings...)
	if errs.Add(problems...); len(errs.Problems) > 0 {
		err = errs
	}
	return cfg, errors.Join(err, cfg.krb5Err)
}

// source says which configuration the command line means. What is not given is package conf's to
// know.
func (o *options) source(users conf.Users) conf.Source {
	return conf.Source{File: o.config, Dir: o.configDir, DefaultSocket: o.socket, Compat: o.compat, Users: users}
}

// readKrb5 reads krb5.conf, as the user that this process is: names in it depend on that.
func (cfg *configuration) readKrb5() error {
	began := time.Now()
	k, err := krb5conf.Load(krb5conf.Files(os.Getenv))
	cfg.krb5, cfg.krb5Files, cfg.warnings = k, takeFingerprint(k.Watch, began), k.Warnings
	if err != nil {
		cfg.krb5, _ = krb5conf.Load(nil) // the rest is looked through all the same
		if _, reading := errors.AsType[*fs.PathError](err); !reading {
			err = &krb5Error{err}
		}
	}
	cfg.krb5Err = err
	return err
}

// krb5Error is an error in krb5.conf, as opposed to one in reading it.
type krb5Error struct{ error }

func (e *krb5Error) Unwrap() error { return e.error }

// fingerprint is the state of files when they were read.
type fingerprint struct {
	files []string
	state string
}

// takeFingerprint records the state of files that were read no earlier than since. A file that may
// have been read half old counts as changed, and the files are read once more.
func takeFingerprint(files []string, since time.Time) fingerprint {
	state, shows := stat(files, since)
	if !shows {
		state = ""
	}
	return fingerprint{files, state}
}

// changed reports whether a file has changed since it was read.
func (f fingerprint) changed() bool {
	state, _ := stat(f.files, time.Now())
	return state != f.state
}

// stat describes the files' state in a string, and reports whether it becomes another with every
// change after read.
func stat(files []string, read time.Time) (state string, shows bool) {
	var b strings.Builder
	shows = true
	for _, name := range files {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil {
			b.WriteString("absent;")
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.%d.%d;", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		// A change time in the future, from before the clock was set back, is taken to differ from
		// those to come: the files are not to be read again and again until then.
		future := time.Unix(st.Ctim.Unix()).After(time.Now())
		shows = shows && (future || openat.ChangesShow(st.Ctim, read))
	}
	return b.String(), shows
}
