package main

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/limits"
	"gssproxyd/tests/lab"
)

// A configuration whose keys do not come is put in force after a while, and who reads it again is told.
func TestPrepareStores(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		log := new(lab.LogBuffer)
		d := testDaemon(log)
		if d.awaitStores() != nil || d.prepareStores(new(configuration)) != nil {
			t.Error("stores are awaited where there are none")
		}
		began := time.Now()
		d.stores = stores.New(stores.Options{
			Dir: dir, Hostname: "h", Lines: limits.NewMeter(), Log: slog.New(slog.DiscardHandler),
			Start: func(*os.File) (nss.Process, error) { return nil, errors.New("none is started here") },
		})
		cfg := &configuration{conf: &conf.Config{KeyStores: []*conf.KeyStore{{Name: "main"}}}}
		if err := d.prepareStores(cfg); err != nil || cfg.warnings != nil || time.Since(began) > 0 {
			t.Errorf("%v, %q, after %v", err, cfg.warnings, time.Since(began))
		}
		cfg.conf.Services = []*conf.Service{{CredStore: []conf.KeyValue{{Key: "keytab", Value: "STORE:main:HTTP/www@A"}}}}
		if err := d.prepareStores(cfg); err != nil || len(cfg.warnings) != 1 || !strings.Contains(cfg.warnings[0], "within 5s of STORE:main:HTTP/www@A") || time.Since(began) != storesTimeout {
			t.Errorf("%v, %q, after %v", err, cfg.warnings, time.Since(began))
		}
		if text := log.String(); strings.Count(text, "no keys have come") != 1 || !strings.Contains(text, "reason=no-delivery") {
			t.Error(text)
		}
		d.stores.Close()
		if d.awaitStores(); time.Since(began) != storesTimeout {
			t.Error("it waits though the daemon ends")
		}
	})
}
