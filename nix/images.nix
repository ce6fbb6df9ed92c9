# How the images run each engine: what is started, on which port, and how one asks whether it works.
{
  torch =
    { program, ... }:
    {
      Entrypoint = [ "${program}/bin/python3" ];
      ExposedPorts = { };
      # importing torch costs seconds of a processor
      seconds = 600;
      health = [
        "${program}/bin/python3"
        "-c"
        "import sys, torch; sys.exit(not torch.cuda.is_available())"
      ];
    };

  llama-cpp =
    { program, curl, ... }:
    {
      Entrypoint = [
        "${program}/bin/llama-server"
        "--host"
        "0.0.0.0"
        "--port"
        "8080"
        "--n-gpu-layers"
        "99"
        "--models-dir"
        "/models"
      ];
      ExposedPorts."8080/tcp" = { };
      seconds = 30;
      health = [
        curl
        "--fail"
        "--silent"
        "http://127.0.0.1:8080/health"
      ];
    };

  ollama =
    { program, curl, ... }:
    {
      Entrypoint = [
        "${program}/bin/ollama"
        "serve"
      ];
      ExposedPorts."11434/tcp" = { };
      environment = {
        OLLAMA_HOST = "0.0.0.0:11434";
        OLLAMA_MODELS = "/models";
      };
      seconds = 30;
      health = [
        curl
        "--fail"
        "--silent"
        "http://127.0.0.1:11434/api/version"
      ];
    };
}
