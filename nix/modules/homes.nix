# An assertion for an option that names a file or folder: the engines' units do not see homes
# (ProtectHome).
lib: option: path: {
  assertion =
    path == null
    || !lib.any (home: lib.hasPrefix home path) [
      "/home/"
      "/root/"
    ];
  message = "${option}: services do not see /home and /root; put models below /srv or /var/lib";
}
